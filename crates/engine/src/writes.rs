//! What devices write to guest memory: recorded page by page, and told to an engine that wants to know.

use std::sync::{PoisonError, RwLock, Weak};

use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Is told what devices wrote to a region, after they did and before they say so to the guest.
pub trait WriteWatch: Send + Sync {
    /// `length` bytes from `offset` in the region were written.
    fn written(&self, offset: usize, length: usize);
}

/// The pages of one region that devices wrote, and who wants to know of it.
#[derive(Debug, Default)]
pub struct DeviceWrites {
    pages: AtomicBitmap,
    watch: RwLock<Option<Weak<dyn WriteWatch>>>,
}

impl DeviceWrites {
    /// From now on `watch`, and nobody else, is told of every write.
    pub fn tell(&self, watch: Weak<dyn WriteWatch>) {
        *self.watch.write().unwrap_or_else(PoisonError::into_inner) = Some(watch);
    }

    /// The record of pages.
    pub fn pages(&self) -> &AtomicBitmap {
        &self.pages
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceWrites {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DeviceWrites {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.pages.mark_dirty(offset, length);
        let watch = self.watch.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = watch.as_ref().and_then(Weak::upgrade) {
            watch.written(offset, length);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> <Self as WithBitmapSlice<'_>>::S {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DeviceWrites {
    fn with_len(length: usize) -> Self {
        Self { pages: AtomicBitmap::with_len(length), watch: RwLock::default() }
    }
}
