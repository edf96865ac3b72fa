//! The dispatcher against a small store in memory and scripted endpoints, in
//! virtual time.

mod fake;
mod random_tests;
mod sim;
