//! README.md and the pages of `docs/` are shown in two places: on a code host, where a link is a
//! path in the repository, and in rustdoc, where `src/lib.rs` and `src/guide.rs` redefine the same
//! links before the text. These tests check that every link and image works in both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{BrokenLink, CodeBlockKind, Event, LinkType, Options, Parser, Tag};

/// A page, and the links that the source file that includes it defines.
struct Page {
    /// The path from the root of the repository.
    path: String,
    text: String,
    /// The targets by label: an item of the crate, a heading, or an image file.
    definitions: BTreeMap<String, String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_page(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "md")
}

/// The text between `start` and `end` in a line.
fn between<'a>(line: &'a str, start: &str, end: &str) -> Option<&'a str> {
    line.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

/// The link or image that a line defines.
fn definition(line: &str) -> Option<(String, String)> {
    if let Some(picture) = between(line, "embed_image!(\"", "\")") {
        return picture
            .split_once("\", \"")
            .map(|(label, file)| (label.to_owned(), file.to_owned()));
    }
    let comment = line.strip_prefix("//! ").or(line.strip_prefix("/// "))?;
    comment
        .strip_prefix('[')?
        .split_once("]: ")
        .map(|(label, item)| (label.to_owned(), item.to_owned()))
}

/// The pages, in the order of the source files.
fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    for source in ["src/lib.rs", "src/guide.rs"] {
        let mut definitions = BTreeMap::new();
        for line in fs::read_to_string(root().join(source)).expect("a source").lines() {
            definitions.extend(definition(line));
            let Some(path) =
                between(line, "include_str!(\"../", "\")").filter(|path| is_page(Path::new(path)))
            else {
                continue;
            };
            let text = fs::read_to_string(root().join(path)).expect("a page");
            pages.push(Page {
                path: path.to_owned(),
                text,
                definitions: std::mem::take(&mut definitions),
            });
        }
    }
    pages
}

#[test]
fn every_page_is_in_rustdoc() {
    let pages = pages();
    let mut files: Vec<PathBuf> =
        fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| is_page(file));
    files.push(root().join("README.md"));
    for file in files {
        assert!(
            pages.iter().any(|page| root().join(&page.path) == file),
            "{} is in no module of src/guide.rs",
            file.display()
        );
    }
}

#[test]
fn every_link_works_on_a_code_host_and_in_rustdoc() {
    for Page { path, text, definitions } in pages() {
        let here = root().join(&path);
        let mut unused = definitions.clone();
        let undefined = |link: BrokenLink<'_>| {
            assert_ne!(
                link.link_type,
                LinkType::Reference,
                "{path}: [{}] has no definition",
                link.reference
            );
            None
        };
        for event in
            Parser::new_with_broken_link_callback(&text, Options::ENABLE_TABLES, Some(undefined))
        {
            let (link_type, target, label, picture) = match event {
                Event::Start(Tag::Link { link_type, dest_url, id, .. }) => {
                    (link_type, dest_url, id, false)
                }
                Event::Start(Tag::Image { link_type, dest_url, id, .. }) => {
                    (link_type, dest_url, id, true)
                }
                _ => continue,
            };
            if target.contains("://") {
                continue;
            }
            assert_eq!(
                link_type,
                LinkType::Reference,
                "{path}: {target} is to be written [text][label]"
            );
            let file = here.parent().expect("a folder").join(&*target);
            assert!(file.is_file(), "{path}: there is no {target}");
            let defined = definitions
                .get(&*label)
                .unwrap_or_else(|| panic!("{path}: rustdoc has no [{label}]"));
            if picture {
                assert_eq!(
                    root().join(defined).canonicalize().unwrap(),
                    file.canonicalize().unwrap(),
                    "{path}: [{label}]"
                );
            }
            unused.remove(&*label);
        }
        assert!(unused.is_empty(), "{path} has no links {unused:?}");
    }
}

#[test]
fn code_is_shown_as_it_is_run() {
    for Page { path, text, .. } in pages() {
        let mut language = String::new();
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(name))) => {
                    assert!(!name.is_empty(), "{path}: a block of code without a language");
                    language = name.to_string();
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Indented)) => {
                    panic!("{path}: rustdoc takes indented text for Rust")
                }
                Event::End(_) => language.clear(),
                Event::Text(code) if language.starts_with("rust") => {
                    let hidden = code
                        .lines()
                        .map(str::trim_start)
                        .find(|line| *line == "#" || line.starts_with("# "));
                    assert_eq!(
                        hidden, None,
                        "{path}: rustdoc hides this line, a code host shows it"
                    );
                }
                _ => {}
            }
        }
    }
}
