//! Where drives go on buses that have limits of their own.

use std::collections::BTreeSet;

use super::super::description::{Bus, Drive};

/// Bus, controller and unit.
pub(super) type Place = (Bus, u32, u32);

/// What a bus of a platform has room for.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub controllers: u32,
    /// Of each controller.
    pub units: u32,
    /// A unit that is the controller itself.
    pub reserved: Option<u32>,
}

impl Room {
    pub fn of(controllers: u32, units: u32) -> Self {
        Self { controllers, units, reserved: None }
    }

    fn fits(&self, controller: u32, unit: u32) -> bool {
        controller < self.controllers && unit < self.units && Some(unit) != self.reserved
    }
}

/// A place for each drive: the wanted one, or the next that is free; nothing where none is wanted or the bus is full.
/// What stays on its bus comes before what moves there.
pub(super) fn places(
    drives: &[Drive],
    wanted: impl Fn(&Drive) -> Option<Place>,
    room: impl Fn(Bus) -> Room,
) -> Vec<Option<Place>> {
    let mut taken = BTreeSet::new();
    let mut places = vec![None; drives.len()];
    for (place, drive) in places.iter_mut().zip(drives) {
        let own = wanted(drive).filter(|(bus, controller, unit)| {
            *bus == drive.bus && room(*bus).fits(*controller, *unit)
        });
        *place = own.filter(|own| taken.insert(*own));
    }
    for (place, drive) in places.iter_mut().zip(drives) {
        let Some((bus, controller, unit)) = wanted(drive).filter(|_| place.is_none()) else {
            continue;
        };
        let room = room(bus);
        let next = (unit..room.units).map(|unit| (controller, unit));
        let all = (0..room.controllers)
            .flat_map(|controller| (0..room.units).map(move |unit| (controller, unit)));
        let mut free = next
            .chain(all)
            .filter(|(controller, unit)| room.fits(*controller, *unit))
            .map(|(controller, unit)| (bus, controller, unit));
        *place = free.find(|place| taken.insert(*place));
    }
    places
}
