//! How many processors a VM has, and how they are divided.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, option};

/// The most processors a VM has.
pub const MAX_CPUS: u32 = 64;

/// Processors. As a text: `4`, or `8,sockets=2,cores=2,threads=2`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cpus {
    /// How many, 1 to 64; if absent, as many as there are threads in all that follows, or one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub count: Option<u32>,
    /// Sockets that they are in; one if absent, or as many as the cores of each leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub sockets: Option<u32>,
    /// Cores of each socket; if absent, as many as the processors take.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub cores: Option<u32>,
    /// Threads of each core, each of which is a processor; one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub threads: Option<u32>,
}

/// How processors are divided: each thread is one. They are numbered by sockets, then by cores, then by threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores of each socket.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
}

impl Topology {
    /// So many cores of one thread each, in one socket.
    pub const fn cores(cores: u32) -> Self {
        Self { sockets: 1, cores, threads: 1 }
    }

    /// All processors; the largest number if it has no room in 32 bits.
    pub const fn count(self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

impl From<Topology> for Cpus {
    fn from(topology: Topology) -> Self {
        let Topology { sockets, cores, threads } = topology;
        Self {
            count: Some(topology.count()),
            sockets: Some(sockets),
            cores: Some(cores),
            threads: Some(threads),
        }
    }
}

impl Cpus {
    /// How many, by default one.
    pub fn count(&self) -> u32 {
        let [sockets, cores, threads] =
            [self.sockets, self.cores, self.threads].map(|part| part.unwrap_or(1));
        self.count.unwrap_or(Topology { sockets, cores, threads }.count())
    }

    /// How they are divided, by default cores of one socket; `None` if that does not give [`count`](Self::count).
    pub fn topology(&self) -> Option<Topology> {
        let count = self.count();
        let threads = self.threads.unwrap_or(1);
        let left = |given: u32| count.checked_div(given.saturating_mul(threads));
        let (sockets, cores) = match (self.sockets, self.cores) {
            (Some(sockets), Some(cores)) => (sockets, cores),
            (None, Some(cores)) => (left(cores)?, cores),
            (sockets, None) => (sockets.unwrap_or(1), left(sockets.unwrap_or(1))?),
        };
        let topology = Topology { sockets, cores, threads };
        (topology.count() == count).then_some(topology)
    }

    /// The division that was asked for, in words: `2 sockets of 4 cores`.
    pub(crate) fn division(&self) -> String {
        let part = |count: Option<u32>, word: &str| match count {
            Some(1) => format!("1 {word}"),
            Some(count) => format!("{count} {word}s"),
            None => format!("{word}s"),
        };
        let mut words = part(self.sockets, "socket");
        if self.cores.or(self.threads).is_some() {
            words = format!("{words} of {}", part(self.cores, "core"));
        }
        if self.threads.is_some() {
            words = format!("{words} of {}", part(self.threads, "thread"));
        }
        words
    }

    /// A number replaces the division as well, which was made for another one.
    pub(crate) fn merge(self, over: Self) -> Self {
        if over.count.is_some() {
            return over;
        }
        match over == Self::default() {
            true => self,
            false => Self { count: self.count, ..over },
        }
    }
}

impl FromStr for Cpus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        option::parse(text, "count")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Cpus {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_not_said_of_the_division_follows_from_the_rest() {
        for (text, expected) in [
            ("8", Some((1, 8, 1))),
            ("8,sockets=2", Some((2, 4, 1))),
            ("8,cores=2", Some((4, 2, 1))),
            ("8,threads=2", Some((1, 4, 2))),
            ("8,cores=2,threads=2", Some((2, 2, 2))),
            ("8,sockets=2,cores=2,threads=2", Some((2, 2, 2))),
            ("sockets=2,cores=3", Some((2, 3, 1))),
            ("threads=2", Some((1, 1, 2))),
            ("8,sockets=3", None),
            ("8,sockets=2,cores=2", None),
            ("8,threads=16", None),
            ("8,cores=0", None),
            ("8,sockets=0,cores=0", None),
        ] {
            let found = cpus(text).topology();
            let found = found.map(|found| (found.sockets, found.cores, found.threads));
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(cpus("sockets=2,cores=3").count(), 6);
    }

    #[test]
    fn a_number_over_a_file_replaces_the_division_as_well() {
        let file = cpus("8,sockets=2,cores=2,threads=2");
        assert_eq!(file.clone().merge(cpus("4")), cpus("4"));
        assert_eq!(file.clone().merge(cpus("sockets=4")), cpus("8,sockets=4"));
        assert_eq!(file.clone().merge(Cpus::default()), file);
    }
}
