//! How many random 4 KiB reads a disk answers, beside others that hold the same: `random_reads REFERENCE IMAGE...`.
//!
//! Each image is read where the reference has data, by 32 threads at once, several times in turn; the best round counts,
//! because everything else that runs makes it slower, never faster. Prints reads a second, reads a second of CPU, and
//! what part of the reference's that is.

use std::error::Error;
use std::thread;
use std::time::Instant;

use disk::{Content, Disk, Extents, ImageOptions};
use rustix::time::{ClockId, clock_gettime};

const DEPTH: u64 = 32;
const READS_EACH: u64 = 4 << 10;
const ROUNDS: usize = 9;
const BLOCK: u64 = 4096;

/// The best of some rounds: reads a second, and a second of CPU.
#[derive(Clone, Copy, Default)]
struct Best {
    by_clock: f64,
    by_cpu: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let how = ImageOptions { read_only: true, ..ImageOptions::default() };
    let names: Vec<String> = std::env::args().skip(1).collect();
    let disks = names.iter().map(|name| disk::open(name, &how)).collect::<Result<Vec<_>, _>>()?;
    let reference = disks.first().ok_or("Which disks?")?;
    let blocks = data_blocks(&**reference)?;
    let mut best = vec![Best::default(); disks.len()];
    for round in 0..ROUNDS {
        for (disk, best) in disks.iter().zip(&mut best) {
            let (wall, cpu) = (Instant::now(), cpu_seconds());
            thread::scope(|scope| {
                let reader = |number| {
                    let (disk, blocks) = (&**disk, &blocks);
                    move || read(disk, blocks, round as u64 * DEPTH + number)
                };
                let readers: Vec<_> =
                    (0..DEPTH).map(|number| scope.spawn(reader(number))).collect();
                readers.into_iter().try_for_each(|reader| reader.join().expect("no panic"))
            })?;
            let reads = (DEPTH * READS_EACH) as f64;
            best.by_clock = best.by_clock.max(reads / wall.elapsed().as_secs_f64());
            best.by_cpu = best.by_cpu.max(reads / (cpu_seconds() - cpu));
        }
    }
    println!("{:30} {:>10} {:>10} {:>6}", "", "reads/s", "reads/CPU", "part");
    for (name, found) in names.iter().zip(&best) {
        let part = found.by_cpu / best[0].by_cpu;
        println!("{name:30} {:10.0} {:10.0} {part:6.2}", found.by_clock, found.by_cpu);
    }
    Ok(())
}

/// Offsets of the blocks where a disk has data.
fn data_blocks(disk: &dyn Disk) -> disk::Result<Vec<u64>> {
    let mut blocks = Vec::new();
    for extent in Extents::new(disk, 0..disk.len()) {
        let extent = extent?;
        if matches!(extent.content, Content::Data(_)) {
            let last = extent.range.end / BLOCK;
            blocks.extend((extent.range.start.div_ceil(BLOCK)..last).map(|block| block * BLOCK));
        }
    }
    Ok(blocks)
}

fn read(disk: &dyn Disk, blocks: &[u64], seed: u64) -> disk::Result<()> {
    let mut buffer = [0; BLOCK as usize];
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..READS_EACH {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        disk.read_at(&mut buffer, blocks[(state % blocks.len() as u64) as usize])?;
    }
    Ok(())
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
