//! Memory for machine code made here: written through one mapping, executed through another.

/// See the module.
pub struct Arena {
    writable: *mut u8,
    executable: *const u8,
    used: usize,
    /// Where the part for code that is seldom executed begins, and what of it is used.
    seldom: usize,
    used_seldom: usize,
    /// Up to where the host has given pages to the two parts.
    populated: [usize; 2],
    size: usize,
}

/// The host's pages are asked for so many bytes at a time: one page at each fault, and that in both mappings, costs
/// as much as the code in it.
const STEP: usize = 256 << 10;

// SAFETY: the mappings belong to the whole process.
unsafe impl Send for Arena {}

impl Arena {
    /// `None` where the host forbids to execute what was written.
    pub fn new(size: usize) -> Option<Self> {
        Self::divided(size, 0)
    }

    /// The same with a part for code that is seldom executed.
    pub fn divided(often: usize, seldom: usize) -> Option<Self> {
        let size = often + seldom;
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
            Some(Self {
                writable: writable.cast(),
                executable: executable.cast(),
                used: 0,
                seldom: often,
                used_seldom: often,
                populated: [0, often],
                size,
            })
        }
    }

    /// Where the next code will be.
    pub fn next(&self) -> u64 {
        self.executable as u64 + self.used as u64
    }

    /// Where the next code will be that is seldom executed.
    pub fn next_seldom(&self) -> u64 {
        self.executable as u64 + self.used_seldom as u64
    }

    /// Appends code that was made for [`Arena::next`]; `false` where there is no room.
    pub fn append(&mut self, code: &[u8]) -> bool {
        let end = self.place(code, self.used, self.seldom, 0);
        self.used = end.map_or(self.used, |end| end.next_multiple_of(16).min(self.seldom));
        end.is_some()
    }

    /// Appends code that was made for [`Arena::next_seldom`]; `false` where there is no room.
    pub fn append_seldom(&mut self, code: &[u8]) -> bool {
        let end = self.place(code, self.used_seldom, self.size, 1);
        self.used_seldom = end.unwrap_or(self.used_seldom);
        end.is_some()
    }

    /// Copies code to `start`; tells its end, if that is not beyond `limit`.
    fn place(&mut self, code: &[u8], start: usize, limit: usize, part: usize) -> Option<usize> {
        let end = start.checked_add(code.len()).filter(|&end| end <= limit)?;
        let populated = self.populated[part];
        if end > populated {
            let step = (end - populated).next_multiple_of(STEP).min(limit - populated);
            // SAFETY: the range is within both mappings; whether the host has pages changes nothing in them.
            unsafe {
                libc::madvise(self.writable.add(populated).cast(), step, libc::MADV_POPULATE_WRITE);
                libc::madvise(
                    self.executable.add(populated).cast_mut().cast(),
                    step,
                    libc::MADV_POPULATE_READ,
                );
            }
            self.populated[part] = populated + step;
        }
        // SAFETY: the range was just checked; nobody executes it yet.
        unsafe {
            self.writable.add(start).copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
        Some(end)
    }

    /// Replaces code at an address that [`Arena::next`] told. Only the thread that executes the code does
    /// this, and it is then not in it.
    pub fn patch(&mut self, address: u64, code: &[u8]) {
        let offset = (address as usize).wrapping_sub(self.executable as usize);
        if offset.checked_add(code.len()).is_none_or(|end| end > self.size) {
            return;
        }
        // SAFETY: the range was just checked.
        unsafe {
            self.writable.add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
    }

    /// Room that is left for code that is seldom executed.
    pub fn left_seldom(&self) -> usize {
        self.size - self.used_seldom
    }

    /// Room that is left for other code.
    pub fn left(&self) -> usize {
        self.seldom - self.used
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.used, self.used_seldom) = (0, self.seldom);
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
