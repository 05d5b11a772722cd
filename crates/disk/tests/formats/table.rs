//! The table of formats in the crate's README says what tests show.

use std::collections::BTreeSet;
use std::path::Path;

use disk::Format;

/// The cells of the tables' rows.
fn rows(readme: &str) -> Vec<Vec<&str>> {
    let lines = readme.lines().filter(|line| line.starts_with("| "));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// A test by its path: `module::name` of these tests, `folder::file::name` of the library's, `kill::name` and others of
/// files of their own, of tests or of the library.
fn assert_exists(root: &Path, test: &str) {
    let (module, name) = test.trim_matches('`').rsplit_once("::").unwrap();
    let file = match module.split_once("::") {
        Some((folder, file)) => format!("src/{folder}/{file}.rs"),
        None if root.join(format!("tests/{module}.rs")).exists() => format!("tests/{module}.rs"),
        None if root.join(format!("src/{module}.rs")).exists() => format!("src/{module}.rs"),
        None => format!("tests/formats/{module}.rs"),
    };
    let source = std::fs::read_to_string(root.join(&file)).unwrap();
    assert!(source.contains(&format!("#[test]\nfn {name}()")), "{file} has no {name}");
}

#[test]
fn every_tick_of_the_readme_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (mut ticks, mut tests) = (BTreeSet::new(), BTreeSet::new());
    let mut formats = BTreeSet::new();
    for row in rows(&readme) {
        match row.as_slice() {
            ["format", ..] => {}
            [format, cells @ ..] if cells.len() == 4 => {
                formats.insert(*format);
                for (cell, what) in cells.iter().zip(["read", "written", "made", "chains"]) {
                    assert!(matches!(*cell, "✓" | ""), "{format}: {cell}");
                    if *cell == "✓" {
                        ticks.insert((*format, what));
                    }
                }
            }
            [format, what, test] => {
                assert!(tests.insert((*format, *what)), "{format} {what} twice");
                assert_exists(root, test);
            }
            ["what", "test"] => {}
            [_, test] => assert_exists(root, test),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ticks, tests);
    assert_eq!(formats, Format::ALL.iter().map(|format| format.name()).collect());
}
