//! How the guest's processors are divided, as APIC IDs and CPUID tell it.
//!
//! Sources: Intel SDM volume 3A, section 11.9 (hierarchical topology), and volume 2A, "CPUID"; AMD APM volume 3, appendix E.

use engine::cpuid::{CpuidLeaf, CpuidTable};
use spec::Topology;

/// Leaf 1 EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001 ECX of AMD's: leaves 0x8000001d and 0x8000001e are there.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// The processor with the topology extensions' last leaf.
const EXTENDED_TOPOLOGY: u32 = 0x8000_001e;
/// Levels of leaf 0xb, in bits 15:8 of ECX.
const LEVEL_THREADS: u32 = 1 << 8;
const LEVEL_CORES: u32 = 2 << 8;

/// Where the fields of an APIC ID begin: each has a power of two of numbers, however many of them are there.
#[derive(Clone, Copy)]
struct Fields {
    core: u32,
    package: u32,
}

impl Fields {
    fn of(topology: Topology) -> Self {
        let width = |count: u32| count.next_power_of_two().trailing_zeros();
        let core = width(topology.threads);
        Self { core, package: core + width(topology.cores) }
    }
}

/// Where a processor is: the numbers of its package, of its core there, and of its thread there.
struct Place {
    package: u32,
    core: u32,
    thread: u32,
}

impl Place {
    fn of(topology: Topology, index: u32) -> Self {
        let Topology { cores, threads, .. } = topology;
        let core = index / threads;
        Self { package: core / cores, core: core % cores, thread: index % threads }
    }
}

/// The APIC ID of processor `index`: less than 128 with up to 64 processors.
pub(crate) fn apic_id(topology: Topology, index: u32) -> u32 {
    let (fields, place) = (Fields::of(topology), Place::of(topology, index));
    place.package << fields.package | place.core << fields.core | place.thread
}

/// The APIC ID of a processor that answers so to CPUID, if it tells one.
pub(crate) fn apic_id_in(table: &CpuidTable) -> Option<u32> {
    table.get(1, 0).map(|leaf| leaf.ebx >> 24)
}

/// Puts what processor `index` is to know of all into its `table`, in the place of what the host's knows.
pub(crate) fn describe(table: &mut CpuidTable, topology: Topology, index: u32) {
    let fields = Fields::of(topology);
    let id = apic_id(topology, index);
    let of_package = topology.cores * topology.threads;
    table.remove(|leaf| matches!(leaf.function, 0xb | 0x1f | EXTENDED_TOPOLOGY | 0x8000_0026));
    if let Some(leaf) = table.get_mut(1, 0) {
        leaf.ebx = leaf.ebx & 0x0000_ff00 | 1 << (16 + fields.package) | id << 24;
        leaf.edx = if of_package > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
    }
    // Intel's caches and AMD's: the first two levels belong to one core, others to one package.
    for leaf in table.0.iter_mut().filter(|leaf| matches!(leaf.function, 4 | 0x8000_001d)) {
        if leaf.eax & 0x1f == 0 {
            continue;
        }
        let sharing = if leaf.eax >> 5 & 7 >= 3 { fields.package } else { fields.core };
        leaf.eax = leaf.eax & 0x3fff | ((1 << sharing) - 1) << 14;
        if leaf.function == 4 {
            leaf.eax |= ((1 << (fields.package - fields.core)) - 1) << 26;
        }
    }
    // 0x1f may have more levels than 0xb, and a guest looks there first.
    let last = table.get(0, 0).map_or(0, |leaf| leaf.eax);
    for function in [0xb, 0x1f].into_iter().filter(|function| *function <= last) {
        let levels = [
            (fields.core, topology.threads, LEVEL_THREADS),
            (fields.package, of_package, LEVEL_CORES),
        ];
        for (level, (eax, ebx, kind)) in (0..).zip(levels) {
            let ecx = kind | level;
            table.set(CpuidLeaf { function, index: Some(level), eax, ebx, ecx, edx: id });
        }
    }
    if is_amd(table) {
        describe_as_amd(table, topology, index);
    }
}

fn is_amd(table: &CpuidTable) -> bool {
    let vendor = table.get(0, 0).map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes));
    vendor.is_some_and(|vendor| matches!(vendor.as_flattened(), b"AuthenticAMD" | b"HygonGenuine"))
}

fn describe_as_amd(table: &mut CpuidTable, topology: Topology, index: u32) {
    let (fields, place) = (Fields::of(topology), Place::of(topology, index));
    let Topology { cores, threads, .. } = topology;
    if let Some(leaf) = table.get_mut(0x8000_0008, 0) {
        let last = cores * threads - 1;
        leaf.ecx = leaf.ecx & !0xf0ff | last | fields.package << 12;
    }
    let Some(features) = table.get_mut(0x8000_0001, 0) else { return };
    // Threads of a core are told by nothing else.
    if threads > 1 {
        features.ecx |= TOPOLOGY_EXTENSIONS;
    }
    if features.ecx & TOPOLOGY_EXTENSIONS == 0 {
        return;
    }
    if let Some(leaf) = table.get_mut(0x8000_0000, 0) {
        leaf.eax = leaf.eax.max(EXTENDED_TOPOLOGY);
    }
    table.set(CpuidLeaf {
        function: EXTENDED_TOPOLOGY,
        index: None,
        eax: apic_id(topology, index),
        ebx: (threads - 1) << 8 | place.core,
        // Each package is a node.
        ecx: place.package,
        edx: 0,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPOLOGY: Topology = Topology { sockets: 2, cores: 3, threads: 2 };

    /// What a processor of this vendor's answers, on a host that has other numbers.
    fn described(vendor: &[u8; 12], topology: Topology, index: u32) -> CpuidTable {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let leaf =
            |function, index, eax| CpuidLeaf { function, index, eax, ..CpuidLeaf::default() };
        let mut table = CpuidTable(vec![
            CpuidLeaf { ebx: word(0), edx: word(4), ecx: word(8), ..leaf(0, None, 0x1f) },
            CpuidLeaf { ebx: 0x0702_0800, ..leaf(1, None, 0) },
            // A first level of the host, shared by two of 16 cores, a third one shared by 32, and no more.
            leaf(4, Some(0), 0x3c00_4121),
            leaf(4, Some(3), 0x3c07_c163),
            leaf(4, Some(4), 0),
            CpuidLeaf { edx: 99, ..leaf(0xb, Some(0), 7) },
            CpuidLeaf { edx: 99, ..leaf(0x1f, Some(2), 7) },
            leaf(0x8000_0000, None, 0x8000_0008),
            leaf(0x8000_0001, None, 0),
            CpuidLeaf { ecx: 0x0001_0000, ..leaf(0x8000_0008, None, 48) },
            leaf(0x8000_001d, Some(0), 0x4121),
            leaf(0x8000_001d, Some(3), 0x7_c163),
        ]);
        describe(&mut table, topology, index);
        table
    }

    #[test]
    fn apic_ids_are_different_and_fit_in_a_byte_whatever_the_topology() {
        for sockets in 1..=64 {
            for cores in 1..=64 / sockets {
                for threads in 1..=64 / sockets / cores {
                    let topology = Topology { sockets, cores, threads };
                    let ids: Vec<_> =
                        (0..topology.count()).map(|index| apic_id(topology, index)).collect();
                    assert!(ids.is_sorted_by(|a, b| a < b) && ids[0] == 0, "{topology:?}");
                    assert!(ids.last() < Some(&128), "{topology:?}: {ids:?}");
                }
            }
        }
    }

    #[test]
    fn cores_of_one_socket_have_their_own_numbers() {
        let cores = Topology::cores(5);
        assert!((0..5).all(|index| apic_id(cores, index) == index));
    }

    #[test]
    fn an_intel_processor_tells_its_place() {
        // Socket 1, core 1, thread 1, in fields of one, two and one bits.
        let table = described(b"GenuineIntel", TOPOLOGY, 9);
        let get = |function, index| *table.get(function, index).unwrap();
        let id = 0b1011;
        assert_eq!((get(1, 0).ebx, get(1, 0).edx & HTT), (id << 24 | 8 << 16 | 0x0800, HTT));
        assert_eq!(apic_id_in(&table), Some(id));
        assert_eq!(get(4, 0).eax, 3 << 26 | 1 << 14 | 0x121);
        assert_eq!(get(4, 3).eax, 3 << 26 | 7 << 14 | 0x163);
        assert_eq!(get(4, 4).eax, 0);
        for function in [0xb, 0x1f] {
            let level = |index| {
                let leaf = get(function, index);
                (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
            };
            assert_eq!(level(0), (1, 2, 0x100, id));
            assert_eq!(level(1), (3, 6, 0x201, id));
            assert!(table.get(function, 2).is_none());
        }
        assert_eq!(get(0x8000_0008, 0).ecx, 0x0001_0000);
        assert!(table.get(EXTENDED_TOPOLOGY, 0).is_none());
    }

    #[test]
    fn an_amd_processor_tells_its_place() {
        let table = described(b"AuthenticAMD", TOPOLOGY, 9);
        let get = |function, index| *table.get(function, index).unwrap();
        assert_eq!(get(0x8000_0008, 0).ecx, 0x0001_0000 | 3 << 12 | 5);
        assert_eq!(get(0x8000_0000, 0).eax, EXTENDED_TOPOLOGY);
        assert_eq!(get(0x8000_0001, 0).ecx, TOPOLOGY_EXTENSIONS);
        assert_eq!(get(0x8000_001d, 0).eax, 1 << 14 | 0x121);
        assert_eq!(get(0x8000_001d, 3).eax, 7 << 14 | 0x163);
        let leaf = get(EXTENDED_TOPOLOGY, 0);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (0b1011, 1 << 8 | 1, 1));
        // Cores alone need no extensions.
        let table = described(b"AuthenticAMD", Topology { threads: 1, ..TOPOLOGY }, 4);
        assert_eq!(table.get(0x8000_0001, 0).unwrap().ecx, 0);
        assert!(table.get(EXTENDED_TOPOLOGY, 0).is_none());
    }

    #[test]
    fn a_processor_alone_in_its_socket_has_no_neighbours() {
        for topology in [Topology::cores(1), Topology { sockets: 4, cores: 1, threads: 1 }] {
            let table = described(b"GenuineIntel", topology, 0);
            let leaf = table.get(1, 0).unwrap();
            assert_eq!((leaf.ebx >> 16, leaf.edx & HTT), (1, 0));
        }
    }
}
