//! KVM behind the engine traits.
