//! `api completions`. The tests of the ingestor complete with what bash is given.

use std::process::Command;

#[test]
fn every_shell_has_a_script_whatever_is_set() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
        let command = command.env_clear().env("DB_PORT", "none");
        let output = command.args(["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("livez"), "{shell}: {script}");
    }
}
