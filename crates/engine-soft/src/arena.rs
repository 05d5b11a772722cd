//! Memory for machine code made here: written through one mapping, executed through another.

/// See the module.
pub struct Arena {
    writable: *mut u8,
    executable: *const u8,
    used: usize,
    size: usize,
}

// SAFETY: the mappings belong to the whole process.
unsafe impl Send for Arena {}

impl Arena {
    /// `None` where the host forbids to execute what was written.
    pub fn new(size: usize) -> Option<Self> {
        // SAFETY: plain system calls; the results are checked, and the descriptor is closed.
        unsafe {
            let file = libc::memfd_create(c"code".as_ptr(), libc::MFD_CLOEXEC);
            if file < 0 {
                return None;
            }
            let grown = libc::ftruncate(file, size as libc::off_t) == 0;
            let map = |protection| {
                if !grown {
                    return libc::MAP_FAILED;
                }
                libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file, 0)
            };
            let writable = map(libc::PROT_READ | libc::PROT_WRITE);
            let executable = map(libc::PROT_READ | libc::PROT_EXEC);
            libc::close(file);
            if writable == libc::MAP_FAILED || executable == libc::MAP_FAILED {
                for mapping in [writable, executable] {
                    if mapping != libc::MAP_FAILED {
                        libc::munmap(mapping, size);
                    }
                }
                return None;
            }
            Some(Self { writable: writable.cast(), executable: executable.cast(), used: 0, size })
        }
    }

    /// Where the next code will be.
    pub fn next(&self) -> u64 {
        self.executable as u64 + self.used as u64
    }

    /// Appends code that was made for [`Arena::next`]; `false` where there is no room.
    pub fn append(&mut self, code: &[u8]) -> bool {
        let Some(end) = self.used.checked_add(code.len()).filter(|&end| end <= self.size) else {
            return false;
        };
        // SAFETY: the range was just checked; nobody executes it yet.
        unsafe {
            self.writable.add(self.used).copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
        self.used = end.next_multiple_of(16).min(self.size);
        true
    }

    /// Replaces code at an address that [`Arena::next`] told. Only the thread that executes the code does
    /// this, and it is then not in it.
    pub fn patch(&mut self, address: u64, code: &[u8]) {
        let offset = (address as usize).wrapping_sub(self.executable as usize);
        if offset.checked_add(code.len()).is_none_or(|end| end > self.used) {
            return;
        }
        // SAFETY: the range was just checked.
        unsafe {
            self.writable.add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
    }

    /// Room that is left.
    pub fn left(&self) -> usize {
        self.size - self.used
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody executes the code any more.
        unsafe {
            libc::munmap(self.writable.cast(), self.size);
            libc::munmap(self.executable.cast_mut().cast(), self.size);
        }
    }
}
