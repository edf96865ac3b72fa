//! Brings the cluster's state into the index.
