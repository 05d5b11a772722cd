//! The table of the documentation names these tests, all of them, and no others.

use std::collections::BTreeSet;

const TABLE: &str = include_str!("../../../../docs/guests.md");
const TESTS: [&str; 3] =
    [include_str!("platforms.rs"), include_str!("systems.rs"), include_str!("importing.rs")];

#[test]
fn the_documentation_lists_the_guests_that_are_tested() {
    let cells = TABLE
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| line.rsplit_once("| `")?.1.strip_suffix("` |"));
    let listed: BTreeSet<&str> = cells.collect();
    let functions = TESTS.iter().flat_map(|text| text.split("#[test]\nfn ").skip(1));
    let tested: BTreeSet<&str> = functions.filter_map(|text| text.split('(').next()).collect();
    assert!(tested.len() > 20);
    assert_eq!(listed, tested);
}
