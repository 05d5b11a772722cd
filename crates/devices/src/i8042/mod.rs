//! The keyboard controller, as far as it resets the machine.
