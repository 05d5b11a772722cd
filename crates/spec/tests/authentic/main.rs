//! Descriptions that others wrote: the test data of libvirt, Xen and dissect, which are downloaded as data and
//! never kept with the project. Without network the tests say that they are skipped.

mod data;
mod hyperv;
mod libvirt;
mod vmware;
mod xen;
