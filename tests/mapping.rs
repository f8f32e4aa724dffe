//! What a guest sees in its window: the live pages of what is mapped, and the one filler everywhere else, before, after,
//! and whatever goes wrong in between.
#![cfg(feature = "testing")]

#[path = "mapping/boundaries.rs"]
mod boundaries;
#[path = "mapping/checked.rs"]
mod checked;
#[path = "mapping/failed.rs"]
mod failed;
#[path = "mapping/filler.rs"]
mod filler;
#[path = "mapping/large.rs"]
mod large;
#[path = "mapping/live.rs"]
mod live;
#[path = "mapping/owner.rs"]
mod owner;
#[path = "mapping/read_only.rs"]
mod read_only;
#[path = "blobs/setup.rs"]
mod setup;
#[path = "mapping/slow_owner.rs"]
mod slow_owner;
