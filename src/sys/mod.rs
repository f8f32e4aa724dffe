//! All `unsafe` code of the crate, behind types whose safe methods cannot be used wrongly.
//! Nothing here imports from another room, so each SAFETY argument stands beside the code that it argues for.

#[cfg(feature = "sources")]
pub(crate) mod dma_heap;
pub(crate) mod dmabuf;
pub(crate) mod fixed_range;
#[cfg(feature = "vhost-user")]
pub(crate) mod inherited;
#[cfg_attr(not(any(test, feature = "sources")), expect(dead_code, reason = "the device itself only reads"))]
pub(crate) mod mapping;
pub(crate) mod pages;
pub(crate) mod reservation;
pub(crate) mod restricted;
pub(crate) mod ring;
pub(crate) mod signals;
#[cfg(feature = "sources")]
pub(crate) mod udmabuf;
#[cfg(feature = "sources")]
pub(crate) mod v4l2;
