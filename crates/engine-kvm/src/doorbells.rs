//! Guest writes that signal eventfds (ioeventfd).

use std::os::fd::AsRawFd;

use engine::{Doorbell, Doorbells, Error, Result};
use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
};
use vmm_sys_util::eventfd::EventFd;

use crate::sys;
use crate::vm::KvmVm;

impl Doorbells for KvmVm {
    fn attach(&self, doorbell: Doorbell, event: &EventFd) -> Result<()> {
        sys::ioeventfd(&self.shared.fd, &argument(doorbell, event, 0)?)
            .map_err(Error::backend("attach a doorbell"))
    }

    fn detach(&self, doorbell: Doorbell, event: &EventFd) -> Result<()> {
        let flags = 1 << kvm_ioeventfd_flag_nr_deassign;
        sys::ioeventfd(&self.shared.fd, &argument(doorbell, event, flags)?)
            .map_err(Error::backend("detach a doorbell"))
    }
}

fn argument(doorbell: Doorbell, event: &EventFd, flags: u32) -> Result<kvm_ioeventfd> {
    let matching = match (doorbell.width, doorbell.value) {
        (None | Some(2 | 4), None) => 0,
        (Some(2 | 4), Some(_)) => 1 << kvm_ioeventfd_flag_nr_datamatch,
        (width, value) => {
            return Err(Error::Invalid(format!(
                "A doorbell cannot be {width:?} bytes wide and ring at {value:?}"
            )));
        }
    };
    Ok(kvm_ioeventfd {
        datamatch: doorbell.value.unwrap_or(0),
        addr: doorbell.address,
        len: doorbell.width.unwrap_or(0).into(),
        fd: event.as_raw_fd(),
        flags: flags | matching,
        ..Default::default()
    })
}
