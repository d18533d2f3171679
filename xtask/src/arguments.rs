//! Options of the commands. clap would double the time of the first build of xtask, and drops the first `--` of arguments
//! that a command passes on.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

/// Takes an option with a number, such as `--rate 5`, out of the arguments; `None` if it is not there.
pub(crate) fn take_number<T: FromStr>(
    arguments: &mut Vec<String>,
    option: &str,
) -> Result<Option<T>> {
    let Some(index) = arguments.iter().position(|argument| argument == option) else {
        return Ok(None);
    };
    arguments.remove(index);
    let number = arguments.get(index).and_then(|text| text.parse().ok());
    let number = number.with_context(|| format!("{option} needs a number, such as {option} 10"))?;
    arguments.remove(index);
    Ok(Some(number))
}

/// Takes an option with a text, such as `--programs FOLDER`, out of the arguments; `None` if it is not there.
pub(crate) fn take_text(arguments: &mut Vec<String>, option: &str) -> Result<Option<String>> {
    let Some(index) = arguments.iter().position(|argument| argument == option) else {
        return Ok(None);
    };
    arguments.remove(index);
    if index == arguments.len() {
        bail!("{option} needs a value");
    }
    Ok(Some(arguments.remove(index)))
}

/// Takes an option without a value, such as `--release`, out of the arguments, and returns whether it was there.
pub(crate) fn take_flag(arguments: &mut Vec<String>, option: &str) -> bool {
    let before = arguments.len();
    arguments.retain(|argument| argument != option);
    arguments.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_and_the_other_arguments_stay() {
        let mut arguments = ["a", "--rate", "5", "--release", "b"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(take_number(&mut arguments, "--rate").unwrap(), Some(5));
        assert_eq!(take_number::<u32>(&mut arguments, "--rate").unwrap(), None);
        assert!(take_flag(&mut arguments, "--release"));
        assert!(!take_flag(&mut arguments, "--release"));
        assert_eq!(arguments, ["a", "b"]);
        let mut with_text = ["a", "--programs", "b"].map(str::to_owned).to_vec();
        let text = take_text(&mut with_text, "--programs").unwrap();
        assert_eq!(text.as_deref(), Some("b"));
        assert_eq!(with_text, ["a"]);
        let mut without_text = ["--programs".to_owned()].to_vec();
        assert!(take_text(&mut without_text, "--programs").is_err());
        let mut without_number = ["--rate".to_owned(), "x".to_owned()].to_vec();
        assert!(take_number::<u32>(&mut without_number, "--rate").is_err());
    }
}
