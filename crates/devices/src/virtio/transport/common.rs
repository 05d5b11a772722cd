//! The common configuration structure (VIRTIO 1.2 section 4.1.4.3): feature negotiation and the set-up of
//! queues.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::signal::{NO_VECTOR, Signals};
use super::{VIRTIO_F_VERSION_1, status};
use crate::virtio::SavedQueue;
use crate::{Error, Result};

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// A write that concerns more than these registers.
pub(super) enum Written {
    Nothing,
    Status(u8),
    ConfigVector(u16),
}

/// What the driver has set up of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueSetup {
    pub(super) saved: SavedQueue,
    pub(super) vector: u16,
}

/// The registers.
#[derive(Clone, Debug)]
pub(super) struct Common {
    device_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    pub(super) driver_features: u64,
    queue_select: u16,
    pub(super) queues: Vec<QueueSetup>,
}

/// The registers, as a snapshot keeps them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedCommon {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueSetup>,
    status: u8,
    generation: u8,
    config_vector: u16,
}

impl Common {
    pub(super) fn new(sizes: &[u16], device_features: u64) -> Self {
        let fresh = |&max_size: &u16| QueueSetup {
            saved: SavedQueue { max_size, size: max_size, ..SavedQueue::default() },
            vector: NO_VECTOR,
        };
        Self {
            device_features,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: sizes.iter().map(fresh).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.saved.max_size).collect();
        *self = Self::new(&sizes, self.device_features);
    }

    /// The driver accepted nothing that was not offered, and the modern interface.
    pub(super) fn features_acceptable(&self) -> bool {
        self.driver_features & !self.device_features == 0
            && self.driver_features & VIRTIO_F_VERSION_1 != 0
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8], signals: &Signals) {
        let queue = self.queues.get(usize::from(self.queue_select));
        let saved = queue.map(|queue| queue.saved).unwrap_or_default();
        let half = |select: u32, features: u64| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let value: u64 = match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select.into(),
            DEVICE_FEATURE => half(self.device_feature_select, self.device_features).into(),
            DRIVER_FEATURE_SELECT => self.driver_feature_select.into(),
            DRIVER_FEATURE => half(self.driver_feature_select, self.driver_features).into(),
            CONFIG_MSIX_VECTOR => signals.config_vector().into(),
            NUM_QUEUES => self.queues.len() as u64,
            DEVICE_STATUS => signals.status.load(Ordering::Acquire).into(),
            CONFIG_GENERATION => signals.generation.load(Ordering::Acquire).into(),
            QUEUE_SELECT => self.queue_select.into(),
            // A queue that does not exist has size 0.
            QUEUE_SIZE => saved.size.into(),
            QUEUE_MSIX_VECTOR => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            QUEUE_ENABLE => saved.ready.into(),
            QUEUE_NOTIFY_OFF => self.queue_select.into(),
            QUEUE_DESC => saved.descriptor_table,
            0x24 => saved.descriptor_table >> 32,
            QUEUE_DRIVER => saved.available_ring,
            0x2c => saved.available_ring >> 32,
            QUEUE_DEVICE => saved.used_ring,
            0x34 => saved.used_ring >> 32,
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        let count = data.len().min(bytes.len());
        data.fill(0);
        data[..count].copy_from_slice(&bytes[..count]);
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], device_status: u8) -> Written {
        let mut bytes = [0; 8];
        let count = data.len().min(8);
        bytes[..count].copy_from_slice(&data[..count]);
        let value = u64::from_le_bytes(bytes);
        let (value16, value32) = (value as u16, value as u32);
        match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value32,
            (DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value32,
            (DRIVER_FEATURE, 4) if device_status & status::FEATURES_OK == 0 => {
                let shift = match self.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return Written::Nothing,
                };
                self.driver_features &= !(0xffff_ffff << shift);
                self.driver_features |= u64::from(value32) << shift;
            }
            (CONFIG_MSIX_VECTOR, 2) => return Written::ConfigVector(value16),
            (DEVICE_STATUS, 1) => return Written::Status(value as u8),
            (QUEUE_SELECT, 2) => self.queue_select = value16,
            (QUEUE_SIZE..0x38, width) if device_status & status::DRIVER_OK == 0 => {
                self.write_queue(offset, width, value);
            }
            _ => {}
        }
        Written::Nothing
    }

    fn write_queue(&mut self, offset: u64, width: usize, value: u64) {
        let vectors = self.queues.len() as u16 + 1;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        let saved = &mut queue.saved;
        let size = value as u16;
        match (offset, width) {
            (QUEUE_MSIX_VECTOR, 2) => queue.vector = if size < vectors { size } else { NO_VECTOR },
            // Enabling is final until the device is reset (section 4.1.4.3.2).
            (QUEUE_ENABLE, 2) if value == 1 => saved.ready = true,
            _ if saved.ready => {}
            (QUEUE_SIZE, 2) if size.is_power_of_two() && size <= saved.max_size => {
                saved.size = size
            }
            (QUEUE_DESC..0x28, _) => set_address(&mut saved.descriptor_table, offset, width, value),
            (QUEUE_DRIVER..0x30, _) => set_address(&mut saved.available_ring, offset, width, value),
            (QUEUE_DEVICE..0x38, _) => set_address(&mut saved.used_ring, offset, width, value),
            _ => {}
        }
    }

    pub(super) fn save(&self, signals: &Signals) -> SavedCommon {
        SavedCommon {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
            status: signals.status.load(Ordering::Acquire),
            generation: signals.generation.load(Ordering::Acquire),
            config_vector: signals.config_vector(),
        }
    }

    pub(super) fn restore(&mut self, saved: &SavedCommon, signals: &Signals) -> Result<()> {
        let same_queues = saved.queues.len() == self.queues.len()
            && saved
                .queues
                .iter()
                .zip(&self.queues)
                .all(|(theirs, ours)| theirs.saved.max_size == ours.saved.max_size);
        if !same_queues {
            return Err(Error::InvalidState("the device had other queues"));
        }
        // A driver that still negotiates may have written anything.
        let negotiated = saved.status & (status::FEATURES_OK | status::DRIVER_OK) != 0;
        if negotiated && saved.driver_features & !self.device_features != 0 {
            return Err(Error::InvalidState("the driver uses features that are not offered here"));
        }
        self.device_feature_select = saved.device_feature_select;
        self.driver_feature_select = saved.driver_feature_select;
        self.driver_features = saved.driver_features;
        self.queue_select = saved.queue_select;
        self.queues.clone_from(&saved.queues);
        for queue in &mut self.queues {
            queue.vector = signals.valid(queue.vector);
        }
        signals.status.store(saved.status, Ordering::Release);
        signals.generation.store(saved.generation, Ordering::Release);
        signals.set_config_vector(saved.config_vector);
        Ok(())
    }
}

/// Writes half or all of a 64-bit address register.
fn set_address(address: &mut u64, offset: u64, width: usize, value: u64) {
    match (offset % 8, width) {
        (0, 8) => *address = value,
        (0, 4) => *address = *address & !0xffff_ffff | value & 0xffff_ffff,
        (4, 4) => *address = *address & 0xffff_ffff | value << 32,
        _ => {}
    }
}
