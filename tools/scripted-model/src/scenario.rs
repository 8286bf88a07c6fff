//! What a scenario is: the replies to each prompt of a conversation, as data.

use serde::Deserialize;
use serde_json::Value;

use crate::step::{Step, StepError};

/// What one conversation is answered with.
///
/// It is stateless: which reply comes next is read off the conversation that the request carries, so a retried
/// request is answered with the same step and a resumed session goes on against a fresh server.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "ScenarioFile")]
pub struct Scenario {
    numbered: Vec<Vec<Step>>,
    matched: Vec<Answer>,
}

/// The steps for every later prompt that contains `needle`.
#[derive(Debug, Clone)]
struct Answer {
    needle: String,
    steps: Vec<Step>,
}

/// Which step answers a request, and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The reply.
    pub step: &'a Step,
    /// Number of the prompt in the conversation, from 1.
    pub prompt: usize,
    /// Number of the request within that prompt, from 0; it goes on counting when the last step repeats.
    pub request: usize,
}

impl Scenario {
    /// Picks the step for a conversation with these `prompts`, the latest of which has `answered` replies already.
    ///
    /// A prompt after the first is compared with the `when_prompt_contains` answers first, without regard to case.
    /// The other prompts are answered by number; those answered by their words are not counted. The last list
    /// repeats, and so does the last step of a list.
    #[must_use]
    pub fn choose(&self, prompts: &[String], answered: usize) -> Choice<'_> {
        let by_words = |index: usize| {
            let text = prompts.get(index).filter(|_| index > 0)?.to_lowercase();
            self.matched.iter().find(|answer| text.contains(&answer.needle))
        };
        let latest = prompts.len().saturating_sub(1);
        let steps = if let Some(answer) = by_words(latest) {
            &answer.steps
        } else {
            let before = (0..latest).filter(|index| by_words(*index).is_none()).count();
            &self.numbered[before.min(self.numbered.len() - 1)]
        };
        Choice {
            step: &steps[answered.min(steps.len() - 1)],
            prompt: prompts.len().max(1),
            request: answered,
        }
    }

    /// Every step of the scenario, in the order of the file but the answers by words last.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.numbered.iter().flatten().chain(self.matched.iter().flat_map(|answer| &answer.steps))
    }
}

/// Why a scenario is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// There is no list of steps by number, so that a first prompt has no reply.
    #[error("a scenario needs at least one list of steps without when_prompt_contains")]
    NoPrompts,
    /// A list is empty.
    #[error("prompt {number} has no steps")]
    NoSteps {
        /// Position in `prompts`, from 1.
        number: usize,
    },
    /// The words to look for are empty and would match every prompt.
    #[error("prompt {number} has an empty when_prompt_contains")]
    EmptyNeedle {
        /// Position in `prompts`, from 1.
        number: usize,
    },
    /// An element of `prompts` is neither a list of steps nor an object with `when_prompt_contains` and `steps`.
    #[error("prompt {number} is neither a list of steps nor an answer by words")]
    Shape {
        /// Position in `prompts`, from 1.
        number: usize,
        /// What was wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A step is not usable.
    #[error("prompt {number}, step {step}: {source}")]
    Step {
        /// Position in `prompts`, from 1.
        number: usize,
        /// Position in the list, from 1.
        step: usize,
        /// What was wrong.
        source: StepError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioFile {
    prompts: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    when_prompt_contains: String,
    steps: Vec<Value>,
}

impl TryFrom<ScenarioFile> for Scenario {
    type Error = ScenarioError;

    fn try_from(file: ScenarioFile) -> Result<Self, ScenarioError> {
        let mut scenario = Self { numbered: Vec::new(), matched: Vec::new() };
        for (index, prompt) in file.prompts.into_iter().enumerate() {
            let number = index + 1;
            if let Value::Array(values) = prompt {
                scenario.numbered.push(steps(number, values)?);
                continue;
            }
            let answer: AnswerFile =
                serde_json::from_value(prompt).map_err(|source| ScenarioError::Shape { number, source })?;
            if answer.when_prompt_contains.trim().is_empty() {
                return Err(ScenarioError::EmptyNeedle { number });
            }
            let needle = answer.when_prompt_contains.to_lowercase();
            scenario.matched.push(Answer { needle, steps: steps(number, answer.steps)? });
        }
        if scenario.numbered.is_empty() { Err(ScenarioError::NoPrompts) } else { Ok(scenario) }
    }
}

fn steps(number: usize, values: Vec<Value>) -> Result<Vec<Step>, ScenarioError> {
    if values.is_empty() {
        return Err(ScenarioError::NoSteps { number });
    }
    let parse = |(index, value)| {
        Step::from_value(value).map_err(|source| ScenarioError::Step { number, step: index + 1, source })
    };
    values.into_iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scenario(value: Value) -> Result<Scenario, ScenarioError> {
        let file: ScenarioFile = serde_json::from_value(value).expect("a scenario file");
        Scenario::try_from(file)
    }

    fn text(scenario: &Scenario, prompts: &[&str], answered: usize) -> String {
        let prompts: Vec<String> = prompts.iter().map(ToString::to_string).collect();
        scenario.choose(&prompts, answered).step.reply.text.clone().expect("a text step")
    }

    #[test]
    fn prompts_are_answered_by_number_and_the_last_list_and_step_repeat() {
        let scenario =
            scenario(json!({"prompts": [[{"text": "a1"}, {"text": "a2"}], [{"text": "b1"}]]})).unwrap();
        assert_eq!(text(&scenario, &["x"], 0), "a1");
        assert_eq!(text(&scenario, &["x"], 1), "a2");
        assert_eq!(text(&scenario, &["x"], 9), "a2");
        assert_eq!(text(&scenario, &["x", "y"], 0), "b1");
        assert_eq!(text(&scenario, &["x", "y", "z"], 0), "b1");
        assert_eq!(text(&scenario, &[], 0), "a1");
    }

    #[test]
    fn later_prompts_are_answered_by_their_words_and_are_then_not_counted() {
        let scenario = scenario(json!({"prompts": [
            [{"text": "a"}],
            {"when_prompt_contains": "Commit Message", "steps": [{"text": "fix: x"}]},
            [{"text": "b"}],
        ]}))
        .unwrap();
        assert_eq!(text(&scenario, &["write a commit message"], 0), "a", "the first prompt goes by number");
        assert_eq!(text(&scenario, &["x", "now the COMMIT message"], 0), "fix: x");
        assert_eq!(text(&scenario, &["x", "commit message", "y"], 0), "b");
        assert_eq!(scenario.steps().count(), 3);
    }

    #[test]
    fn every_unusable_scenario_says_why() {
        let error = |value| scenario(value).expect_err("unusable").to_string();
        assert!(error(json!({"prompts": []})).starts_with("a scenario needs at least one list"));
        assert!(
            error(json!({"prompts": [{"when_prompt_contains": "x", "steps": [{"text": "y"}]}]}))
                .starts_with("a scenario needs at least one list")
        );
        assert_eq!(error(json!({"prompts": [[]]})), "prompt 1 has no steps");
        assert_eq!(
            error(
                json!({"prompts": [[{"text": "a"}], {"when_prompt_contains": " ", "steps": [{"text": "y"}]}]})
            ),
            "prompt 2 has an empty when_prompt_contains"
        );
        assert!(error(json!({"prompts": [{"steps": []}]})).starts_with("prompt 1 is neither"));
        assert!(error(json!({"prompts": [[{"text": "a"}, {"tool": 1}]]})).starts_with("prompt 1, step 2: "));
    }
}
