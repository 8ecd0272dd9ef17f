//! Names of everything that we keep in a broker: all begin with the prefix.

use millrace_core::name::{self, FunctionName, InvalidName, Topic};

/// Names under a prefix.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    instance: String,
}

impl Names {
    pub(super) fn new(prefix: &str, instance: &str) -> Self {
        Self { prefix: prefix.to_owned(), instance: instance.to_owned() }
    }

    /// What tells this instance from the others.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// `<prefix>.registry`, of one partition: deployments of functions, and where components are.
    pub(super) fn registry(&self) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.registry", self.prefix))
    }

    /// `<prefix>.components`, of one partition: components in chunks.
    pub(super) fn components(&self) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.components", self.prefix))
    }

    /// `<prefix>.instances`, of one partition: what each instance says of itself.
    pub(super) fn instances(&self) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.instances", self.prefix))
    }

    /// `<prefix>.audit`, of one partition: who did what.
    pub(super) fn audit(&self) -> Result<Topic, InvalidName> {
        name::audit_topic(&self.prefix)
    }

    /// The consumer group of a function.
    pub(super) fn group(&self, function: &FunctionName) -> String {
        format!("{}.{function}", self.prefix)
    }

    /// The group that readers name because librdkafka wants one: they never commit and never join, and need no right to it.
    pub(super) fn readers(&self) -> String {
        format!("{}.readers", self.prefix)
    }

    /// What fences this instance's earlier producer for the function.
    pub(super) fn transactional_id(&self, function: &FunctionName) -> String {
        format!("{}.{function}.{}", self.prefix, self.instance)
    }

    /// What shows whether transactions may be begun, and disturbs none.
    pub(super) fn check_id(&self) -> String {
        format!("{}.check.{}", self.prefix, self.instance)
    }

    /// What fences whoever else decides where the function starts. No instance can be named so.
    pub(super) fn start_id(&self, function: &FunctionName) -> String {
        format!("{}.{function}.@start", self.prefix)
    }

    /// What fences this instance's earlier producer for publishing. No function is named `publish` without an application.
    pub(super) fn publisher_id(&self) -> String {
        format!("{}.publish.{}", self.prefix, self.instance)
    }

    /// `<prefix>.<application>.<function>.dead-letter`, of one partition.
    pub(super) fn dead_letters(&self, function: &FunctionName) -> Result<Topic, InvalidName> {
        name::dead_letter_topic(&self.prefix, function)
    }

    /// `<prefix>.<application>.<function>.dead-letter-status`, of one partition: what happened to dead letters.
    pub(super) fn statuses(&self, function: &FunctionName) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.{function}.dead-letter-status", self.prefix))
    }

    /// `<prefix>.<application>.<function>.redrive.<source topic>`, with the source's partitions.
    pub(super) fn redrive(&self, function: &FunctionName, source: &Topic) -> Result<Topic, InvalidName> {
        name::redrive_topic(&self.prefix, function, source)
    }

    /// `<prefix>.<application>.<function>.keys.<source topic>`, with the source's partitions: idempotency keys.
    pub(super) fn keys(&self, function: &FunctionName, source: &Topic) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.{function}.keys.{source}", self.prefix))
    }

    /// `<prefix>.<application>.<function>.state.<source topic>`, with the source's partitions: the state of the handler.
    pub(super) fn state(&self, function: &FunctionName, source: &Topic) -> Result<Topic, InvalidName> {
        Topic::new(format!("{}.{function}.state.{source}", self.prefix))
    }

    /// The source topic that a redrive topic of the function is for.
    pub(super) fn source_of_redrive(&self, function: &FunctionName, topic: &str) -> Option<Topic> {
        let source = topic.strip_prefix(&format!("{}.{function}.redrive.", self.prefix))?;
        Topic::new(source.to_owned()).ok()
    }

    /// Whether only the runtime makes topics of this name.
    pub(super) fn is_reserved(&self, topic: &str) -> bool {
        name::is_reserved(&self.prefix, topic)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_instance_of_any_name_has_identities_of_its_own() {
        let function = "shop.pay".parse().unwrap();
        let ids = |names: Names| {
            [names.transactional_id(&function), names.start_id(&function), names.publisher_id(), names.check_id()]
        };
        for instance in ["start", "publish", "check", "a1"] {
            name::check_label("an instance", instance).unwrap();
            let ids = ids(Names::new("millrace", instance)).into_iter().collect::<BTreeSet<_>>();
            assert_eq!(ids.len(), 4, "{ids:?}");
        }
    }

    #[test]
    fn names_begin_with_the_prefix_and_tell_instances_apart() {
        let names = Names::new("millrace", "a1");
        let function = "shop.pay".parse().unwrap();
        let orders = Topic::new("orders").unwrap();
        assert_eq!(names.group(&function), "millrace.shop.pay");
        assert_eq!(names.transactional_id(&function), "millrace.shop.pay.a1");
        assert_eq!(names.publisher_id(), "millrace.publish.a1");
        let shared = [names.registry(), names.components(), names.instances()].map(Result::unwrap);
        assert_eq!(
            shared.each_ref().map(Topic::as_str),
            ["millrace.registry", "millrace.components", "millrace.instances"]
        );
        assert_eq!(names.dead_letters(&function).unwrap().as_str(), "millrace.shop.pay.dead-letter");
        assert_eq!(names.statuses(&function).unwrap().as_str(), "millrace.shop.pay.dead-letter-status");
        assert_eq!(names.keys(&function, &orders).unwrap().as_str(), "millrace.shop.pay.keys.orders");
        assert_eq!(names.state(&function, &orders).unwrap().as_str(), "millrace.shop.pay.state.orders");
        let redrive = names.redrive(&function, &orders).unwrap();
        assert_eq!(redrive.as_str(), "millrace.shop.pay.redrive.orders");
        assert_eq!(names.source_of_redrive(&function, redrive.as_str()), Some(orders));
        assert_eq!(names.source_of_redrive(&function, "millrace.shop.pay.keys.orders"), None);
        assert!(names.is_reserved("millrace.shop.pay.keys.orders") && !names.is_reserved("orders"));
    }
}
