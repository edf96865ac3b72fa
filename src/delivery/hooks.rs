//! Who is told of Webhooks by the registrar: the dispatcher, and a directory of
//! names for cards, Replays and the controller.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    directory::{Directory, HookInfo},
    registrar::Hooks,
    sender::SecretCache,
};
use crate::{
    dispatch::{DispatcherHandle, HookView},
    policy::delivery::DeliverySettings,
    routing::index::SharedIndex,
    store::{HookId, Known},
};

/// Passes Webhooks on to the dispatcher and remembers their names.
pub(super) struct PodHooks {
    dispatcher: DispatcherHandle,
    secrets: SecretCache,
    index: Arc<SharedIndex>,
    names: RwLock<Names>,
}

#[derive(Default)]
struct Names {
    /// Boxed, since a third of the places of a hash table is empty.
    by_id: HashMap<HookId, Box<HookInfo>>,
    /// By namespace and name.
    by_name: HashMap<Arc<str>, HashMap<Arc<str>, HookId>>,
}

impl PodHooks {
    /// Knows what the store knew at its start, also of Webhooks that are gone:
    /// their dead letters still have cards.
    pub(super) fn new(
        dispatcher: DispatcherHandle,
        secrets: SecretCache,
        index: Arc<SharedIndex>,
        known: &Known,
    ) -> Self {
        let mut names = Names::default();
        let settings = Arc::new(DeliverySettings::default());
        for known in &known.hooks {
            let hook = &known.hook;
            names.put(HookInfo {
                id: known.id,
                namespace: Arc::clone(&hook.namespace),
                namespace_uid: Arc::clone(&hook.namespace_uid),
                name: Arc::clone(&hook.name),
                uid: Arc::clone(&hook.uid),
                settings: Arc::clone(&settings),
            });
        }
        Self { dispatcher, secrets, index, names: RwLock::new(names) }
    }

    fn note(&self, view: &HookView) {
        let Some(webhook) = &view.webhook else { return };
        let uid = self.index.read(|index| index.namespace_uid(&view.namespace).cloned());
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let known = names.by_id.get(&view.id).map(|info| Arc::clone(&info.namespace_uid));
        names.put(HookInfo {
            id: view.id,
            namespace: Arc::clone(&view.namespace),
            namespace_uid: known.or(uid).unwrap_or_default(),
            name: Arc::clone(&webhook.name),
            uid: Arc::clone(&webhook.uid),
            settings: Arc::clone(&view.settings),
        });
    }
}

impl Names {
    fn put(&mut self, info: HookInfo) {
        let namespace = self.by_name.entry(Arc::clone(&info.namespace)).or_default();
        namespace.insert(Arc::clone(&info.name), info.id);
        self.by_id.insert(info.id, Box::new(info));
    }

    fn remove(&mut self, hook: HookId) -> Option<Box<HookInfo>> {
        let gone = self.by_id.remove(&hook)?;
        if let Some(namespace) = self.by_name.get_mut(&gone.namespace) {
            // A namesake in a namespace made anew has another number.
            if namespace.get(&gone.name) == Some(&hook) {
                namespace.remove(&gone.name);
            }
            if namespace.is_empty() {
                self.by_name.remove(&gone.namespace);
            }
        }
        Some(gone)
    }
}

impl Hooks for PodHooks {
    fn set_hook(&self, view: HookView) {
        self.note(&view);
        self.dispatcher.set_hook(view);
    }

    fn reload_hook(&self, hook: HookId) {
        self.dispatcher.reload(hook);
    }

    fn remove_hook(&self, hook: HookId) {
        let gone = self.names.write().unwrap_or_else(PoisonError::into_inner).remove(hook);
        if let Some(info) = gone {
            self.secrets.forget(&info.namespace, &info.uid);
        }
        self.dispatcher.remove_hook(hook);
    }
}

impl Directory for PodHooks {
    fn hook(&self, id: HookId) -> Option<HookInfo> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&id).map(|info| (**info).clone())
    }

    fn find(&self, namespace: &str, name: &str) -> Option<HookInfo> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let id = names.by_name.get(namespace)?.get(name)?;
        names.by_id.get(id).map(|info| (**info).clone())
    }
}
