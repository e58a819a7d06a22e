//! Writes and finds the marked block at the end of a configuration that has the handlers.

use super::handler::{settings, Handler};

pub const BEGIN: &str =
    "# BEGIN caisson: `caisson node install` wrote this, `caisson node uninstall` takes it out";
pub const END: &str = "# END caisson";

/// Returns the block as it follows `text`, with the line ends that `text` uses.
pub fn block(
    text: &str,
    handlers: &[&Handler],
    version: Option<i64>,
    cri: &str,
    others: &toml::Table,
) -> String {
    let mut lines = vec![BEGIN.to_owned()];
    lines.extend(version.map(|version| format!("version = {version}")));
    for handler in handlers {
        let name = &handler.name;
        lines.push(format!("[plugins.\"{cri}\".containerd.runtimes.{name}]"));
        for (key, item) in settings(handler, None).iter() {
            lines.push(format!("  {key} = {}", item.to_string().trim()));
        }
    }
    if !others.is_empty() {
        let mut table = others.clone();
        for key in ["runtimes", "containerd", cri, "plugins"] {
            table = toml::Table::from_iter([(key.to_owned(), table.into())]);
        }
        lines.push("# containerd's own default, which it forgets where one is named.".to_owned());
        let rest = table.to_string();
        lines.extend(rest.lines().map(str::to_owned));
    }
    lines.push(END.to_owned());
    // After a final `\r`, a `
    // ` would make the first Windows line end of the text, and the block would be different the
    // next time.
    let windows = text.contains("\r\n") || text.ends_with('\r');
    let end = if windows { "\r\n" } else { "\n" };
    let whole = text.is_empty() || text.ends_with('\n');
    let start = if whole { "" } else { end };
    format!("{start}{}{end}", lines.join(end))
}

/// Finds the block, including its line ends.
pub fn block_in(text: &str) -> Option<std::ops::Range<usize>> {
    let start = text.find(BEGIN)?;
    let end = start + text[start..].find(END)? + END.len();
    let rest = &text[end..];
    let line_end = rest.find('\n').map_or(rest.len(), |at| at + 1);
    rest[..line_end]
        .trim()
        .is_empty()
        .then_some(start..end + line_end)
}
