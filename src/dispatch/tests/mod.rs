//! The dispatcher against a small store in memory and scripted endpoints, in
//! virtual time.

mod engine_tests;
mod fake;
mod order_tests;
mod random_tests;
mod shell_tests;
mod sim;
