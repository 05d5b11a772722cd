//! The entries of menus: what each boots, and which one is chosen.

use super::script::Block;
use super::{Collected, MAX_ENTRIES, MAX_MENUS, Machine};
use crate::loader::{BootEntry, Menu};

/// An entry of a menu whose block has not been executed.
#[derive(Clone)]
pub struct Item {
    pub title: String,
    pub id: Option<String>,
    pub arguments: Vec<String>,
    pub action: Action,
}

#[derive(Clone)]
pub enum Action {
    Entry(Block),
    Submenu(Block),
    /// Of the Boot Loader Specification: complete already.
    Ready(Box<BootEntry>),
}

impl Machine<'_> {
    /// Executes the entries of a menu and puts what they boot into `menu`. `default` says which one is chosen.
    pub(super) fn list(
        &mut self,
        items: &[Item],
        above: &[String],
        default: Option<&str>,
        menu: &mut Menu,
        chosen: &mut Option<usize>,
    ) {
        // A `configfile` ended what came before, and not what is chosen in its menu.
        self.leaving = None;
        let wanted = default.map(|default| choose(items, default));
        for (index, item) in items.iter().enumerate() {
            if menu.entries.len() >= MAX_ENTRIES {
                return;
            }
            let is_wanted = wanted.as_ref().is_some_and(|(wanted, _)| *wanted == index);
            let path = |title: &str| {
                let mut path = above.to_vec();
                path.push(title.to_owned());
                path
            };
            match &item.action {
                Action::Submenu(_) if above.len() >= MAX_MENUS => {}
                Action::Submenu(block) | Action::Entry(block) => {
                    let is_submenu = matches!(item.action, Action::Submenu(_));
                    let mut inner = self.copy();
                    inner.arguments.clone_from(&item.arguments);
                    inner.set("chosen", item.title.clone());
                    inner.nested(|machine| machine.execute(block));
                    let inner_items = std::mem::take(&mut inner.items);
                    // An entry may lead to the menu of another configuration, which has its own default.
                    if is_submenu || (!inner_items.is_empty() && above.len() < MAX_MENUS) {
                        let own = inner.value("default");
                        let rest = wanted.as_ref().filter(|_| is_wanted).map(|(_, rest)| {
                            if is_submenu || !rest.is_empty() { rest.as_str() } else { &own }
                        });
                        inner.list(&inner_items, &path(&item.title), rest, menu, chosen);
                        self.steps = inner.steps;
                        continue;
                    }
                    self.steps = inner.steps;
                    if is_wanted {
                        *chosen = Some(menu.entries.len());
                    }
                    let Collected { kernel, initrds, cmdline, note } = inner.collected;
                    let id = item.id.clone();
                    let title = path(&item.title).join(" > ");
                    menu.entries.push(BootEntry { title, id, kernel, initrds, cmdline, note });
                }
                Action::Ready(entry) => {
                    if is_wanted {
                        *chosen = Some(menu.entries.len());
                    }
                    menu.entries.push((**entry).clone());
                }
            }
        }
    }
}

/// Which entry `default` names, and what it says for the submenu that this may be.
fn choose(items: &[Item], default: &str) -> (usize, String) {
    let (first, rest) = default.split_once('>').unwrap_or((default, ""));
    // A title may hold a `>` itself, and then it is doubled.
    let named = |name: &str| {
        items.iter().position(|item| item.id.as_deref() == Some(name) || item.title == name)
    };
    if let Ok(index) = first.trim().parse::<usize>()
        && index < items.len()
    {
        return (index, rest.to_owned());
    }
    if let Some(index) = named(&default.replace(">>", ">")) {
        return (index, String::new());
    }
    match named(first) {
        Some(index) => (index, rest.to_owned()),
        None => (0, String::new()),
    }
}
