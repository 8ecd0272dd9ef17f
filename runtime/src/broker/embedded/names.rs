//! Names of the topics that the runtime makes for itself.

use millrace_core::name::{FunctionName, InvalidName, Topic};

/// Names under a prefix.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// `<prefix>.<application>.<function>.dead-letter`. It has one partition: dead letters are few, and are found through
    /// their index, not by partition.
    pub(super) fn dead_letters(&self, function: &FunctionName) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.{function}.dead-letter", self.prefix))
    }

    /// `<prefix>.<application>.<function>.redrive.<source topic>`, with the source's partitions.
    pub(super) fn redrive(&self, function: &FunctionName, source: &Topic) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.{function}.redrive.{source}", self.prefix))
    }

    /// Whether only the runtime makes topics of this name.
    pub(super) fn is_reserved(&self, topic: &Topic) -> bool {
        topic.as_str().strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_the_prefix_and_are_reserved() {
        let names = Names::new("millrace");
        let function = "shop.pay".parse().unwrap();
        let orders = Topic::new("orders").unwrap();
        assert_eq!(names.dead_letters(&function).unwrap().as_str(), "millrace.shop.pay.dead-letter");
        assert_eq!(names.redrive(&function, &orders).unwrap().as_str(), "millrace.shop.pay.redrive.orders");
        assert!(names.is_reserved(&names.dead_letters(&function).unwrap()));
        assert!(!names.is_reserved(&orders));
        assert!(!names.is_reserved(&Topic::new("millraces").unwrap()));
        assert!(names.redrive(&function, &Topic::new("x".repeat(249)).unwrap()).is_err());
    }
}
