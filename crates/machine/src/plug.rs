//! The devices that a [`VmSpec`] asks for: this list is the one place that knows them all.

use std::sync::Arc;

use devices::rate_limiter::RateLimit;
use devices::virtio::balloon::{Balloon, BalloonConfig};
use devices::virtio::block::{Block, BlockConfig};
use devices::virtio::fs::{Fs, FsConfig};
use devices::virtio::net::{Backend, Net, NetConfig, Vhost};
use devices::virtio::rng::Rng;
use devices::virtio::vsock::{Vsock, VsockConfig};
use spec::{MacAddress, Nic, NicKind, Rate, VmSpec};

use crate::disks::OpenDisk;
use crate::{Board, Result};

/// Most queues of a disk that does not say how many.
const DISK_QUEUES: u32 = 4;

/// Plugs everything that `spec` asks for into `board`, but for the console; the disks that it names are `disks`.
pub fn plug(board: &mut Board, spec: &VmSpec, disks: &[OpenDisk]) -> Result<()> {
    for (disk, index) in disks.iter().zip(0..) {
        plug_disk(board, &format!("disk{index}"), disk, spec.cpus.count())?;
    }
    let vm = spec.name.as_deref().unwrap_or("vm");
    let mut nics = Vec::new();
    for (nic, index) in spec.nics.iter().flatten().zip(0..) {
        nics.push(plug_nic(board, &format!("net{index}"), vm, nic)?);
    }
    for (share, index) in spec.shares.iter().zip(0..) {
        let name = format!("fs{index}");
        let mut config = FsConfig::new(share.tag(), &share.dir);
        config.readonly = share.readonly;
        let fs = Fs::new(name.as_str(), config)?;
        board.plug_virtio(&name, Arc::new(fs))?;
    }
    let events = board.events().clone();
    if let Some(vsock) = &spec.vsock {
        let config = VsockConfig { guest_cid: vsock.cid().into(), path: vsock.path.clone() };
        board.plug_virtio("vsock", Arc::new(Vsock::new("vsock", config, events.clone())?))?;
    }
    if spec.rng.unwrap_or(true) {
        board.plug_virtio("rng", Arc::new(Rng::new("rng", events.clone())))?;
    }
    if spec.balloon.unwrap_or(true) {
        let config = BalloonConfig { target: 0, deflate_on_oom: true, reporting: true };
        board.plug_virtio("balloon", Arc::new(Balloon::new("balloon", config, events)))?;
    }
    // Last, since the programs behind them start meanwhile.
    for nic in nics {
        nic.wait_ready()?;
    }
    Ok(())
}

fn plug_disk(board: &mut Board, name: &str, disk: &OpenDisk, cpus: u32) -> Result<()> {
    let mut config = BlockConfig::new(Arc::clone(&disk.disk));
    let disk = &disk.spec;
    config.read_only |= disk.readonly;
    config.serial.clone_from(&disk.serial);
    // More than 64 processors are not offered, so this fits.
    config.queues = disk.queues.unwrap_or(cpus.min(DISK_QUEUES) as u16);
    config.rate = rate_limit(&disk.rate);
    board.plug_virtio(name, Block::new(name, config)?)
}

fn plug_nic(board: &mut Board, name: &str, vm: &str, nic: &Nic) -> Result<Arc<Net>> {
    let backend = match nic.kind() {
        NicKind::Tap => {
            Backend::Tap { name: nic.tap.clone().unwrap_or_default(), vhost: Vhost::Auto }
        }
        NicKind::User => Backend::User { forward: nic.forwards.clone() },
    };
    let mut config = NetConfig::new(backend);
    // Two VMs on one bridge must not share an address, nor two cards of one VM.
    config.mac = Some(nic.mac.unwrap_or_else(|| MacAddress::of_name(&format!("{vm}/{name}"))));
    config.queue_pairs = nic.queues.unwrap_or(1);
    config.mtu = nic.mtu;
    config.rate_rx = rate_limit(&nic.rate);
    config.rate_tx = rate_limit(&nic.rate);
    let net = Net::new(name, &config, board.events().clone())?;
    board.plug_virtio(name, Arc::clone(&net) as _)?;
    Ok(net)
}

fn rate_limit(rate: &Rate) -> RateLimit {
    RateLimit {
        bytes_per_second: rate.bytes_per_second.and_then(|size| size.0.try_into().ok()),
        operations_per_second: rate
            .operations_per_second
            .and_then(|count| u64::from(count).try_into().ok()),
        burst: rate.burst,
    }
}
