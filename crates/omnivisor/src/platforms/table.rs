//! `omnivisor platforms`: what can be done with each platform, and with one that is named.

use std::process::ExitCode;

use clap::Args;
use comfy_table::{Table, presets};
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
            format!("{}\n{}", plain(&product), abilities_text(&abilities))
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

fn abilities_text(abilities: &[(Verb, Ability)]) -> String {
    let line = |(verb, ability): &(Verb, Ability)| match ability {
        Ability::Yes => format!("{:<16} yes\n", verb.name()),
        Ability::Partly(how) => format!("{:<16} partly: {}\n", verb.name(), plain(how)),
        Ability::No(reason) => format!("{:<16} no: {}\n", verb.name(), plain(reason)),
    };
    abilities.iter().map(line).collect()
}

/// All drivers, and below what each lacks.
fn overview() -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["PLATFORM", "URI", "TESTED AGAINST"]);
    let mut lacks = String::new();
    for driver in DRIVERS {
        let schemes: Vec<_> = driver.schemes.iter().map(|one| format!("{one}://")).collect();
        let met = match driver.met {
            Met::Product(what) => what.to_owned(),
            Met::Simulator(what) => format!("a simulator: {what}"),
            Met::Recorded(what) => format!("no real product: {what}"),
        };
        table.add_row([driver.platform.to_owned(), schemes.join(" "), met]);
        for verb in Verb::ALL {
            match (driver.ability)(verb) {
                Ability::Yes => {}
                Ability::Partly(how) => {
                    lacks.push_str(&format!("{}: {verb}: {how}\n", driver.platform));
                }
                Ability::No(reason) => {
                    lacks.push_str(&format!("{}: no {verb}: {reason}\n", driver.platform));
                }
            }
        }
    }
    let verbs = Verb::ALL.map(Verb::name).join(", ");
    format!("{}\nThey can {verbs}, but for\n{lacks}", super::list::lines(&table))
}
