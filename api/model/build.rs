//! Writes the core's source out for the model checker: once as it is, and once with each classic mistake planted.
//!
//! Only the locks and atomics are replaced, by those of shuttle. A text to be replaced that is not there exactly once ends
//! the build: a mistake that is no longer planted would prove nothing.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

const CACHE: &str = "../src/cache";

/// The name of a mistake, and what is replaced by what.
const MISTAKES: [(&str, &str, &str); 13] = [
    (
        "store_without_slot",
        "ended.as_ref().is_some_and(|load| load.is_current(gate))",
        "ended.as_ref().is_some_and(|load| load.epoch == gate.epoch)",
    ),
    (
        "join_after_event",
        "demand == Demand::Proven && loading.is_current(gate)",
        "demand == Demand::Proven && loading.epoch == gate.epoch",
    ),
    (
        "load_without_epoch",
        "!self.is_taken && self.epoch == gate.epoch",
        "!self.is_taken && self.epoch <= gate.epoch",
    ),
    (
        "load_from_before_listen",
        "is_taken: !gate.stores,",
        "is_taken: false,",
    ),
    (
        "hit_without_epoch",
        "if let Some(entry) = shard.entries.get(uid)\n                && entry.epoch == gate.epoch\n",
        "if let Some(entry) = shard.entries.get(uid)\n",
    ),
    (
        "absence_survives_a_loss",
        "shard.missing.len();\n            shard.missing.clear();",
        "shard.missing.len();\n            shard.missing.pop(\"\");",
    ),
    (
        "verify_any_version",
        "Some(entry) if Some(entry.value.version()) == version => entry.epoch = epoch",
        "Some(entry) if version.is_some() => entry.epoch = epoch",
    ),
    (
        "demand_joins_older_load",
        "demand == Demand::Proven && loading.is_current(gate)",
        "loading.is_current(gate)",
    ),
    (
        "older_entry_after_a_blind_read",
        "Some(entry.value.version()) < version",
        "Some(entry.value.version()) < version.min(Some(0))",
    ),
    (
        "older_entry_after_a_discarded_load",
        "self.drop_older(&mut shard, &uid, loaded.version());",
        "",
    ),
    (
        "next_load_forgotten",
        "ended.and_then(|load| load.next).map(",
        "ended.and_then(|load| load.next).filter(|_| false).map(",
    ),
    (
        "loss_keeps_the_epoch",
        "epoch: gate.epoch + 1,",
        "epoch: gate.epoch,",
    ),
    (
        "absence_left_behind_by_a_store",
        "shard.missing.pop(&uid);\n        self.remove_entry",
        "self.remove_entry",
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    let read = |name: &str| {
        let path = Path::new(CACHE).join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let gate = replace(&read("core/gate.rs")?, "use std::sync", "use shuttle::sync")?;
    let contract = read("core/contract.rs")?;
    let segments = read("core/segments.rs")?;
    let mut core = read("core.rs")?;
    for (from, to) in [
        ("use std::sync::atomic", "use shuttle::sync::atomic"),
        (
            "use std::sync::{Mutex, MutexGuard, PoisonError};",
            "use shuttle::sync::{Mutex, MutexGuard};\nuse std::sync::PoisonError;",
        ),
        ("mod gate;", &format!("mod gate {{ {gate} }}")),
        ("mod contract;", &format!("mod contract {{ {contract} }}")),
        ("mod segments;", &format!("mod segments {{ {segments} }}")),
        ("mod sample;", ""),
        ("#[cfg(test)]\nmod tests;", ""),
    ] {
        core = replace(&core, from, to)?;
    }
    let counters = read("counters.rs")?;
    let out_dir = env::var("OUT_DIR")?;
    let write = |name: &str, core: &str| {
        let modules = format!("mod counters {{ {counters} }}\nmod core {{ {core} }}\n");
        fs::write(Path::new(&out_dir).join(name).with_extension("rs"), modules)
    };
    write("sound", &core)?;
    for (name, from, to) in MISTAKES {
        write(name, &replace(&core, from, to)?)?;
    }
    Ok(())
}

fn replace(text: &str, from: &str, to: &str) -> Result<String, String> {
    match text.matches(from).count() {
        1 => Ok(text.replacen(from, to, 1)),
        count => Err(format!("found {count} times in the core's source: {from}")),
    }
}
