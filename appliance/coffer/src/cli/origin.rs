//! Where an option's value came from: what decides trust is shown with its origin.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

/// Options whose values decide what is trusted and that the environment may give.
const OPTIONS: [&str; 3] = ["reference", "github_api", "github_ca"];

/// Which of them the environment gave. Stands first in its group of options: clap hands out each value once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    from_environment: Vec<&'static str>,
}

impl Origins {
    /// `flag`, `environment` or `default`, for an option that is `given` or not.
    pub(crate) fn of(&self, option: &str, given: bool) -> &'static str {
        match given {
            true if self.from_environment.contains(&option) => "environment",
            true => "flag",
            false => "default",
        }
    }

    fn read(matches: &ArgMatches) -> Self {
        let given = |option: &&str| {
            matches.try_contains_id(option).unwrap_or(false)
                && matches.value_source(option) == Some(ValueSource::EnvVariable)
        };
        Self { from_environment: OPTIONS.into_iter().filter(given).collect() }
    }
}

impl FromArgMatches for Origins {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::read(matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::read(matches);
        Ok(())
    }
}

impl Args for Origins {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
