//! In which order services are stopped, and when one has had its time: what others depend on ends after them.
//!
//! It only decides, by the time that has passed; PID 1's loop does it. Nobody holds up the machine's end: after half of the time that
//! there is all are told, and after all of it the rest are killed.

use std::time::Duration;

/// What is to be done to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask it to end.
    Tell,
    /// End it.
    Kill,
}

/// One service on its way to the end.
#[derive(Debug)]
struct One {
    /// How long it gets after it was told.
    grace: Duration,
    /// Who has to have ended before it is told.
    dependents: Vec<usize>,
    told: Option<Duration>,
    killed: bool,
    ended: bool,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Stopping {
    services: Vec<One>,
    /// What there is for all of them together.
    limit: Duration,
}

impl Stopping {
    /// Of services with their names, their grace and the names of those that they depend on.
    pub(crate) fn new(services: &[(&str, Duration, &[String])], limit: Duration) -> Self {
        let dependents = |name: &str| {
            let depends = |(_, (.., needs)): &(usize, &(&str, Duration, &[String]))| {
                needs.iter().any(|need| need == name)
            };
            services.iter().enumerate().filter(depends).map(|(index, _)| index).collect()
        };
        let one = |(name, grace, _): &(&str, Duration, &[String])| One {
            grace: *grace,
            dependents: dependents(name),
            told: None,
            killed: false,
            ended: false,
        };
        Self { services: services.iter().map(one).collect(), limit }
    }

    /// The service of this index does not run.
    pub(crate) fn ended(&mut self, index: usize) {
        if let Some(one) = self.services.get_mut(index) {
            one.ended = true;
        }
    }

    /// Whether nothing is left to be done.
    pub(crate) fn done(&self) -> bool {
        self.services.iter().all(|one| one.ended || one.killed)
    }

    /// What is to be done when so much time has passed since the beginning. Each step is named once.
    pub(crate) fn due(&mut self, passed: Duration) -> Vec<(usize, Step)> {
        let gone: Vec<bool> = self.services.iter().map(|one| one.ended || one.killed).collect();
        let all = passed >= self.limit / 2;
        let mut steps = Vec::new();
        for (index, one) in self.services.iter_mut().enumerate().filter(|(_, one)| !one.ended && !one.killed)
        {
            let free = one.dependents.iter().all(|other| gone.get(*other).copied().unwrap_or(true));
            match one.told {
                None if free || all => {
                    one.told = Some(passed);
                    steps.push((index, Step::Tell));
                }
                Some(told) if passed >= told.saturating_add(one.grace) || passed >= self.limit => {
                    one.killed = true;
                    steps.push((index, Step::Kill));
                }
                _ => {}
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(120);

    /// Fifty services in ten rows, each of which depends on two of the row before.
    fn fifty() -> Vec<(String, Vec<String>)> {
        let name = |row: usize, column: usize| format!("s{row}-{}", column % 5);
        let mut all = Vec::new();
        for row in 0..10 {
            for column in 0..5 {
                let needs = if row == 0 {
                    Vec::new()
                } else {
                    vec![name(row - 1, column), name(row - 1, column + 1)]
                };
                all.push((name(row, column), needs));
            }
        }
        all
    }

    fn stopping(services: &[(String, Vec<String>)], grace: Duration) -> Stopping {
        let services: Vec<_> =
            services.iter().map(|(name, needs)| (name.as_str(), grace, needs.as_slice())).collect();
        Stopping::new(&services, LIMIT)
    }

    #[test]
    fn fifty_services_stop_in_reverse_of_the_order_in_which_they_need_each_other() {
        let services = fifty();
        let mut stopping = stopping(&services, 10 * SECOND);
        let mut order = Vec::new();
        for round in 0..10 {
            let steps = stopping.due(SECOND * round);
            assert!(steps.iter().all(|(_, step)| *step == Step::Tell));
            for (index, _) in &steps {
                stopping.ended(*index);
            }
            order.push(steps.into_iter().map(|(index, _)| services[index].0.clone()).collect::<Vec<_>>());
        }
        let rows: Vec<Vec<String>> =
            (0..10).rev().map(|row| (0..5).map(|column| format!("s{row}-{column}")).collect()).collect();
        assert_eq!(order, rows);
        assert!(stopping.done());
    }

    #[test]
    fn one_that_does_not_end_is_killed_after_its_grace_and_then_holds_up_nobody() {
        let services = [("db".to_owned(), vec![]), ("web".to_owned(), vec!["db".to_owned()])];
        let mut stopping = stopping(&services, 10 * SECOND);
        assert_eq!(stopping.due(Duration::ZERO), [(1, Step::Tell)]);
        assert_eq!(stopping.due(9 * SECOND), []);
        assert_eq!(stopping.due(10 * SECOND), [(1, Step::Kill)]);
        assert_eq!(stopping.due(10 * SECOND), [(0, Step::Tell)]);
        assert!(!stopping.done());
        stopping.ended(0);
        assert!(stopping.done());
    }

    #[test]
    fn a_long_chain_is_told_all_at_once_after_half_of_the_time_and_killed_at_its_end() {
        let services: Vec<(String, Vec<String>)> = (0..10)
            .map(|at| (format!("s{at}"), if at == 0 { vec![] } else { vec![format!("s{}", at - 1)] }))
            .collect();
        let mut stopping = stopping(&services, 100 * SECOND);
        assert_eq!(stopping.due(Duration::ZERO), [(9, Step::Tell)]);
        assert_eq!(stopping.due(59 * SECOND), []);
        assert_eq!(stopping.due(60 * SECOND).len(), 9, "all the others");
        let killed = stopping.due(LIMIT);
        assert!(killed.len() == 10 && killed.iter().all(|(_, step)| *step == Step::Kill));
        assert!(stopping.done());
    }
}
