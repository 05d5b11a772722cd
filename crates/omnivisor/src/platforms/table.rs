//! `omnivisor platforms`: what can be done with each platform, and with one that is named.

use std::process::ExitCode;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use platform::{Ability, DRIVERS, Met, Uri, Verb};
use serde_json::json;

use super::{ReachArgs, failed, plain};
use crate::disk::{OutputFormat, print, print_json};
use crate::failure::Failure;

/// Options of `omnivisor platforms`.
#[derive(Debug, Clone, Args)]
pub struct PlatformsArgs {
    /// Ask this platform, as it is now, instead of telling of all kinds
    #[arg(value_name = "URI")]
    uri: Option<Uri>,

    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,

    #[command(flatten)]
    reach: ReachArgs,
}

/// So much is printed of a product's name and version.
const LONGEST_PRODUCT: usize = 200;

/// Prints it.
pub fn run(args: &PlatformsArgs) -> Result<ExitCode, Failure> {
    let text = match (&args.uri, args.format) {
        (Some(uri), format) => {
            let platform = args.reach.connect(uri)?;
            let product = platform.product().map_err(failed)?;
            let abilities = Verb::ALL.map(|verb| (verb, platform.ability(verb)));
            if format == OutputFormat::Json {
                print_json(&json!({
                    "uri": uri.to_string(),
                    "product": product,
                    "abilities": abilities_json(&abilities),
                }))?;
                return super::DONE;
            }
            let product: String = plain(&product).chars().take(LONGEST_PRODUCT).collect();
            format!("{product}\n{}", abilities_text(&abilities))
        }
        (None, OutputFormat::Json) => {
            let drivers = DRIVERS.iter().map(|driver| {
                json!({
                    "platform": driver.platform,
                    "schemes": driver.schemes,
                    "met": driver.met,
                    "abilities": abilities_json(&Verb::ALL.map(|verb| (verb, (driver.ability)(verb)))),
                })
            });
            print_json(&json!({ "platforms": drivers.collect::<Vec<_>>() }))?;
            return super::DONE;
        }
        (None, OutputFormat::Table) => overview(),
    };
    print(&text)?;
    super::DONE
}

fn abilities_json(abilities: &[(Verb, Ability)]) -> serde_json::Value {
    let entries = abilities.iter().map(|(verb, ability)| {
        let mut value = json!(ability);
        value["verb"] = json!(verb.name());
        value
    });
    entries.collect()
}

/// What a platform can do in one way, or cannot for one reason.
#[derive(PartialEq, Eq)]
struct Group {
    can: &'static str,
    verbs: Vec<Verb>,
    why: String,
}

/// Abilities by what they are and why: first what it can do.
fn groups(abilities: &[(Verb, Ability)]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for wanted in ["yes", "partly", "no"] {
        for (verb, ability) in abilities {
            let (can, why) = match ability {
                Ability::Yes => ("yes", String::new()),
                Ability::Partly(how) => ("partly", plain(how)),
                Ability::No(reason) => ("no", plain(reason)),
            };
            match groups.iter_mut().find(|group| group.can == can && group.why == why) {
                Some(group) if can == wanted => group.verbs.push(*verb),
                None if can == wanted => groups.push(Group { can, verbs: vec![*verb], why }),
                _ => {}
            }
        }
    }
    groups
}

impl Group {
    /// Its verbs; all that concern snapshots are one word.
    fn names(&self) -> String {
        let of_snapshots = |verb: &Verb| verb.name().starts_with("snapshot ");
        let all = Verb::ALL.iter().filter(|verb| of_snapshots(verb)).count();
        let has_all = self.verbs.iter().filter(|verb| of_snapshots(verb)).count() == all;
        let name = |verb: &Verb| match has_all && of_snapshots(verb) {
            true => "snapshot",
            false => verb.name(),
        };
        let mut names: Vec<_> = self.verbs.iter().map(name).collect();
        names.dedup();
        names.join(", ")
    }
}

/// What one platform can do.
fn abilities_text(abilities: &[(Verb, Ability)]) -> String {
    let (mut text, mut table) = (String::new(), table());
    for group in groups(abilities) {
        match group.can {
            // Nothing is to be said beside it, so it may be long.
            "yes" => text = format!("yes     {}\n", group.names()),
            can => drop(table.add_row([can, &group.names(), &group.why])),
        }
    }
    text + &super::list::lines(&table)
}

/// All drivers, and below what each lacks.
fn overview() -> String {
    let mut drivers = table();
    drivers.set_header(["PLATFORM", "URI", "TESTED AGAINST"]);
    let mut lacking: Vec<(String, Vec<Group>)> = Vec::new();
    for driver in DRIVERS {
        let schemes: Vec<_> = driver.schemes.iter().map(|one| format!("{one}://")).collect();
        let met = match driver.met {
            Met::Product(what) => what.to_owned(),
            Met::Simulator(what) => format!("a simulator: {what}"),
            Met::Recorded(what) => format!("no real product: {what}"),
        };
        drivers.add_row([driver.platform.to_owned(), schemes.join(" "), met]);
        let mut lacks = groups(&Verb::ALL.map(|verb| (verb, (driver.ability)(verb))));
        lacks.retain(|group| group.can != "yes");
        match lacking.last_mut() {
            Some((names, last)) if *last == lacks => {
                names.push_str(", ");
                names.push_str(driver.platform);
            }
            _ => lacking.push((driver.platform.to_owned(), lacks)),
        }
    }
    let mut exceptions = table();
    for (names, lacks) in lacking {
        let mut platform = names.as_str();
        for group in lacks {
            exceptions.add_row([platform, group.can, &group.names(), &group.why]);
            platform = "";
        }
    }
    let verbs = Group { can: "yes", verbs: Verb::ALL.to_vec(), why: String::new() }.names();
    let mut all = table();
    all.add_row([format!("They can {verbs}, but for")]);
    [drivers, all, exceptions].map(|table| super::list::lines(&table)).join("\n")
}

/// A table as wide as the terminal.
fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(crate::probe::width());
    table
}
