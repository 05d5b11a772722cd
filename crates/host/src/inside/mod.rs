//! What the program runs inside of. CPUID alone misleads: one hypervisor answers with the signature
//! of another, or with two. So every witness is heard, and each layer carries what spoke for it.

mod container;
mod hypervisor;
mod names;

pub(crate) use container::made_by_container_engine;

use crate::facts::Facts;
use crate::report::Layer;

/// All layers, innermost first: containers, hypervisors, the cloud.
pub(crate) fn layers(facts: &Facts) -> Vec<Layer> {
    let hypervisors = hypervisor::layers(facts);
    let mut all = container::layers(facts);
    let cloud = hypervisor::cloud(facts, &hypervisors);
    all.extend(hypervisors);
    all.extend(cloud);
    all
}
