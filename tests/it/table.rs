//! The routing table of the store, against a matcher that looks at everything.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeMap,
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use posthorn::{
    event::Pos,
    routing::{
        index::{
            EventPattern, Index, Start, SubscriptionEntry, WatchedKind,
            document::{self, Standing},
        },
        table::RoutingTable,
    },
    store::{From, HookDefinition, HookId, RouteChange, RouteKey, Router, SubDefinition, SubId, Target},
};
use proptest::prelude::*;
use serde_json::json;

use crate::index::{POOL, subscription, to_webhook, webhook};

/// Counts what this thread has allocated and not given back.
struct Counting;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    BYTES.with(|all| all.set(all.get() + bytes));
}

#[expect(unsafe_code, reason = "an allocator cannot be written without; tests only, and it only counts")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        unsafe { System.dealloc(pointer, layout) }
    }
}
