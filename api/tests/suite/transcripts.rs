//! Runs each command of `docs/API.md` and compares its output with the page.
//!
//! A block of commands begins with three back-ticks and `console`. If more words follow, the block has an api and a database
//! of its own. The words are settings of that api, or name what is wrong with that database. If `UPDATE_API_MD` is set,
//! outputs that differ are written to the page.

mod run;

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::future::join_all;
use regex::Regex;
use serde_json::Value;

use self::run::Api;

/// The address that the page uses.
const ADDRESS: &str = "localhost:8081";

/// The history that the page's `ETag`s have.
const HISTORY: &str = "5f0c1a7be2d94836";

const PAGE: &str = include_str!("../../../docs/API.md");

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_is_answered() {
    let old = Page::parse(PAGE);
    let new = old.run_again().await;
    if std::env::var_os("UPDATE_API_MD").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/API.md");
        std::fs::write(file, new.render()).unwrap();
    } else {
        assert_eq!(
            old.render(),
            PAGE,
            "the page is not formatted as UPDATE_API_MD=1 writes it"
        );
        let steps = old.steps().zip(new.steps());
        let outdated: Vec<String> = steps
            .filter(|(old, new)| old.output != new.output)
            .map(|(old, new)| format!("$ {}\n{}\nnow:\n{}\n", old.command, old.output, new.output))
            .collect();
        assert!(
            outdated.is_empty(),
            "docs/API.md is out of date, UPDATE_API_MD=1 updates it:\n{}",
            outdated.join("\n")
        );
    }
    assert_eq!(new.lacking(), BTreeSet::new());
}

#[test]
fn what_the_page_does_not_show_is_missed() {
    let without = |text: &str| Page::parse(&PAGE.replace(text, "other")).lacking();
    assert_eq!(without("nothing of this"), BTreeSet::new());
    assert!(without(r#""code":"overloaded""#).contains("overloaded"));
    assert!(without("/api/v1/cache/stats").contains("GET /api/v1/cache/stats"));
    assert!(without("-X DELETE ").contains("DELETE /api/v1/orders/{order_uid}"));
}

struct Page {
    parts: Vec<Part>,
}

enum Part {
    Line(String),
    Block(Block),
}

struct Block {
    /// The words after "console".
    setup: String,
    steps: Vec<Step>,
}

#[derive(Clone)]
struct Step {
    command: String,
    output: String,
}

impl Page {
    fn parse(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(setup) = line.strip_prefix("```console") else {
                parts.push(Part::Line(line.to_owned()));
                continue;
            };
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            parts.push(Part::Block(Block {
                setup: setup.trim().to_owned(),
                steps: Step::parse_all(&block),
            }));
        }
        Self { parts }
    }

    fn render(&self) -> String {
        let parts = self.parts.iter().map(|part| match part {
            Part::Line(line) => [line, "\n"].concat(),
            Part::Block(block) => block.render(),
        });
        parts.collect()
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.parts.iter().filter_map(|part| match part {
            Part::Block(block) => Some(block),
            Part::Line(_) => None,
        })
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.blocks().flat_map(|block| &block.steps)
    }

    /// Returns the page with the present outputs. Blocks with the same setup run in order on the same api.
    async fn run_again(&self) -> Self {
        let setups: BTreeSet<&str> = self.blocks().map(|block| block.setup.as_str()).collect();
        let runs = setups.into_iter().map(async |setup| {
            let blocks = self.blocks().filter(|block| block.setup == setup);
            let commands = blocks.flat_map(|block| &block.steps);
            let api = Api::start(setup).await;
            let mut steps = Vec::new();
            for step in commands {
                let output = api.output_of(&step.command).await;
                let is_same =
                    run::without_what_varies(&output) == run::without_what_varies(&step.output);
                steps.push(Step {
                    command: step.command.clone(),
                    output: if is_same { step.output.clone() } else { output },
                });
            }
            (setup, steps.into_iter())
        });
        let mut runs = join_all(runs).await;
        let parts = self.parts.iter().map(|part| match part {
            Part::Line(line) => Part::Line(line.clone()),
            Part::Block(block) => {
                let run = runs.iter_mut().find(|(setup, _)| *setup == block.setup);
                let (_, steps) = run.unwrap();
                Part::Block(Block {
                    setup: block.setup.clone(),
                    steps: steps.take(block.steps.len()).collect(),
                })
            }
        });
        Self {
            parts: parts.collect(),
        }
    }

    /// Lists the operations and codes of `openapi.json` that no command shows.
    fn lacking(&self) -> BTreeSet<String> {
        let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
        let steps: Vec<&Step> = self.steps().collect();
        let codes = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
            .as_array()
            .unwrap();
        let codes = codes.iter().map(|code| code.as_str().unwrap().to_owned());
        let codes = codes.filter(|code| {
            let shown = format!("\"code\":\"{code}\"");
            !steps.iter().any(|step| step.output.contains(&shown))
        });
        let paths = document["paths"].as_object().unwrap();
        let operations = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| (method.to_uppercase(), path))
        });
        let operations = operations
            .filter(|(method, _)| {
                ["GET", "PUT", "POST", "PATCH", "DELETE"].contains(&method.as_str())
            })
            .filter(|(method, path)| !steps.iter().any(|step| step.asks(method, path)))
            .map(|(method, path)| format!("{method} {path}"));
        codes.chain(operations).collect()
    }
}

impl Block {
    fn render(&self) -> String {
        let head = ["```console ", &self.setup].concat();
        let steps = self.steps.iter().map(|step| {
            let Step { command, output } = step;
            format!("$ {command}\n{output}").trim_end().to_owned()
        });
        let steps: Vec<String> = steps.collect();
        [head.trim_end(), "\n", &steps.join("\n\n"), "\n```\n"].concat()
    }
}

impl Step {
    /// A command continues after a backslash at the end of its line. The lines after the command are its output.
    fn parse_all(lines: &[&str]) -> Vec<Self> {
        let mut steps: Vec<Self> = Vec::new();
        for line in lines {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Self {
                    command: command.to_owned(),
                    output: String::new(),
                });
                continue;
            }
            let step = steps.last_mut().expect("a block begins with a command");
            let is_whole = !(step.command.ends_with('\\') && step.output.is_empty());
            if is_whole {
                step.output.push_str(line);
                step.output.push('\n');
            } else {
                step.command.push('\n');
                step.command.push_str(line);
            }
        }
        for step in &mut steps {
            step.output.truncate(step.output.trim_end().len());
        }
        steps
    }

    fn asks(&self, method: &str, path: &str) -> bool {
        let pattern = path.replace("{order_uid}", "[^/]+");
        let pattern = pattern.replace("{file}", "[^/]+");
        let pattern = format!(r"{ADDRESS}{pattern}(['?\s]|$)");
        // curl sends what `-d` gives by POST.
        let usual = if self.command.contains(" -d ") {
            "POST"
        } else {
            "GET"
        };
        let own_method = self.command.split_once("-X ").map_or(usual, |(_, rest)| {
            rest.split(' ').next().expect("split gives something")
        });
        own_method == method && Regex::new(&pattern).unwrap().is_match(&self.command)
    }
}
