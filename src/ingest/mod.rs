//! Takes events in over HTTP.
