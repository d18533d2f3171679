//! `ingestor completions`, as a shell uses it.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::command;

/// The script for a shell. It must not depend on settings: a person's shell has none of the service.
fn script_for(shell: &str) -> String {
    let wrong = [("DB_PORT".to_owned(), "none".to_owned())];
    let output = command(&["completions", shell], &wrong).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn bash(script: &str) -> String {
    let mut bash = Command::new("bash")
        .args(["--norc", "--noprofile", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = bash.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = bash.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_flags() {
    let script = script_for("bash");
    for (words, expected) in [
        ("ingestor dead", "dead-letters"),
        ("ingestor offsets acc", "accept-gap"),
        ("ingestor run --no-mig", "--no-migrate"),
        ("ingestor --kafka-bro", "--kafka-brokers"),
    ] {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _ingestor ingestor \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"\n"
        );
        let completed = bash(&ask);
        assert_eq!(completed.trim(), expected, "{words}");
    }
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = script_for(shell);
        assert!(script.contains("dead-letters"), "{shell}: {script}");
    }
}
