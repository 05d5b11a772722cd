//! What can go wrong when somebody else's disk is read.

/// Why something in a guest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk beneath cannot be read.
    #[error("The guest's disk cannot be read")]
    Disk(#[from] disk::Error),
    /// A structure contradicts itself or leads out of its volume.
    #[error("The guest's {what} is damaged: {why}")]
    Damaged {
        /// Of what.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A structure that we know of and do not read.
    #[error("The guest's {what} cannot be read here: {why}")]
    Unsupported {
        /// Of what.
        what: &'static str,
        /// What is missing.
        why: String,
    },
    /// Nothing has that path.
    #[error("The guest has no {0}")]
    NotFound(String),
    /// Something else than expected has that path.
    #[error("The guest's {path} is not {expected}")]
    Kind {
        /// The path.
        path: String,
        /// What it should be: "a file".
        expected: &'static str,
    },
    /// More symbolic links than Linux follows.
    #[error("The guest's {0} leads through too many symbolic links")]
    Links(String),
    /// Larger than anything that is read of it should be.
    #[error("The guest's {path} is larger than {limit} bytes")]
    TooLarge {
        /// The path.
        path: String,
        /// How much is read at most.
        limit: u64,
    },
    /// What is to be added to the guest's initial file system does not fit.
    #[error("The guest's initial file system cannot be completed")]
    Initramfs(#[from] image::ArchiveError),
}

/// What reading a guest returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Damage to `what`.
    pub(crate) fn damaged(what: &'static str, why: impl Into<String>) -> Self {
        Self::Damaged { what, why: why.into() }
    }

    /// Something that is not read.
    pub(crate) fn unsupported(what: &'static str, why: impl Into<String>) -> Self {
        Self::Unsupported { what, why: why.into() }
    }
}
