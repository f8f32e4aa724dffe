//! Feature bits that the device offers and a driver acknowledges (virtio 1.4, sections 5.7.3 and 6).
//! A set of bits is a plain `u64`, as transports carry it.

/// `VIRTIO_GPU_F_VIRGL`: contexts and the commands of the 0x200 range.
pub const VIRGL: u64 = 1 << 0;
/// `VIRTIO_GPU_F_EDID`: GET_EDID.
pub const EDID: u64 = 1 << 1;
/// `VIRTIO_GPU_F_RESOURCE_UUID`: RESOURCE_ASSIGN_UUID.
pub const RESOURCE_UUID: u64 = 1 << 2;
/// `VIRTIO_GPU_F_RESOURCE_BLOB`: blob resources.
pub const RESOURCE_BLOB: u64 = 1 << 3;
/// `VIRTIO_GPU_F_CONTEXT_INIT`: context types and fence timelines per (context, ring).
pub const CONTEXT_INIT: u64 = 1 << 4;
/// `VIRTIO_GPU_F_BLOB_ALIGNMENT`: the configuration space states an alignment for blobs.
pub const BLOB_ALIGNMENT: u64 = 1 << 5;
/// `VIRTIO_F_INDIRECT_DESC`.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;

/// The virtio device id of a GPU (virtio 1.4, section 5.7.1).
pub const DEVICE_ID: u32 = 16;
/// Shared-memory region id of the host-visible window (virtio 1.4, section 5.7.6.9).
pub const SHM_ID_HOST_VISIBLE: u8 = 1;

/// Everything this device can serve.
pub const OFFERED: u64 = VERSION_1
    | INDIRECT_DESC
    | EVENT_IDX
    | VIRGL
    | EDID
    | RESOURCE_UUID
    | RESOURCE_BLOB
    | CONTEXT_INIT
    | BLOB_ALIGNMENT;

/// Bits that build on others (virtio 1.4, section 5.7.3.1).
const BUILDS_ON: [(u64, u64); 2] = [(CONTEXT_INIT, VIRGL), (BLOB_ALIGNMENT, RESOURCE_BLOB)];

/// The offer without `withheld`, and without what builds on it. VERSION_1 is always offered.
#[must_use]
pub fn offer_without(withheld: u64) -> u64 {
    let kept = (OFFERED & !withheld) | VERSION_1;
    BUILDS_ON.iter().fold(kept, |kept, (feature, needs)| if kept & needs == 0 { kept & !feature } else { kept })
}

/// Why a driver's choice of features cannot be served; the transport then leaves FEATURES_OK clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FeatureError {
    /// The driver acknowledged bits that were never offered.
    #[error("features {unknown:#x} were not offered")]
    NotOffered {
        /// The bits in question.
        unknown: u64,
    },
    /// A legacy driver: the device speaks virtio 1 only.
    #[error("VIRTIO_F_VERSION_1 was not acknowledged")]
    Legacy,
    /// A bit was acknowledged without the one that it builds on.
    #[error("feature {feature:#x} needs feature {needs:#x}")]
    MissingPrerequisite {
        /// The bit that was acknowledged.
        feature: u64,
        /// The bit that is missing.
        needs: u64,
    },
}

/// Checks a driver's choice against what it was offered and against the dependencies between bits
/// (virtio 1.4, section 5.7.3.1).
///
/// # Errors
/// The first rule that the choice breaks.
pub fn check(offered: u64, acknowledged: u64) -> Result<(), FeatureError> {
    let unknown = acknowledged & !offered;
    if unknown != 0 {
        return Err(FeatureError::NotOffered { unknown });
    }
    if acknowledged & VERSION_1 == 0 {
        return Err(FeatureError::Legacy);
    }
    for (feature, needs) in BUILDS_ON {
        if acknowledged & feature != 0 && acknowledged & needs == 0 {
            return Err(FeatureError::MissingPrerequisite { feature, needs });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_were_not_offered_or_lack_their_prerequisite_are_refused() {
        assert_eq!(check(OFFERED, OFFERED), Ok(()));
        assert_eq!(check(OFFERED, VERSION_1), Ok(()));
        assert_eq!(check(OFFERED, VERSION_1 | 1 << 40), Err(FeatureError::NotOffered { unknown: 1 << 40 }));
        assert_eq!(check(OFFERED, VIRGL), Err(FeatureError::Legacy));
        assert_eq!(
            check(OFFERED, VERSION_1 | CONTEXT_INIT),
            Err(FeatureError::MissingPrerequisite { feature: CONTEXT_INIT, needs: VIRGL })
        );
        assert_eq!(
            check(OFFERED, VERSION_1 | BLOB_ALIGNMENT),
            Err(FeatureError::MissingPrerequisite { feature: BLOB_ALIGNMENT, needs: RESOURCE_BLOB })
        );
    }

    #[test]
    fn what_is_withheld_is_never_offered_nor_what_builds_on_it() {
        assert_eq!(offer_without(0), OFFERED);
        assert_eq!(offer_without(VIRGL), OFFERED & !(VIRGL | CONTEXT_INIT));
        assert_eq!(offer_without(RESOURCE_BLOB | EDID), OFFERED & !(RESOURCE_BLOB | BLOB_ALIGNMENT | EDID));
        assert_eq!(offer_without(u64::MAX), VERSION_1);
        assert_eq!(check(offer_without(EDID), VERSION_1 | EDID), Err(FeatureError::NotOffered { unknown: EDID }));
    }
}
