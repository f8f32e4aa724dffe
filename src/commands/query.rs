//! Commands that only ask: GET_DISPLAY_INFO, GET_EDID, GET_CAPSET_INFO, GET_CAPSET. They claim nothing.

use zerocopy::IntoBytes;

use super::{Gpu, Refusal, Response, Step};
use crate::cross_domain;
use crate::protocol::wire::CAPSET_CROSS_DOMAIN;
use crate::seams::Work;

/// Version of the cross-domain capability set.
const CROSS_DOMAIN_VERSION: u32 = 1;

/// Number of capability sets that a device with `rendered` ones of its renderer has.
pub(crate) fn capset_count(rendered: usize) -> u32 {
    // The cross-domain set comes last.
    rendered as u32 + 1
}

impl Gpu {
    pub(super) fn display_info(&mut self) -> Result<Step, Refusal> {
        self.when_known(|gpu| {
            gpu.events.displays_read();
            Ok(Response::DisplayInfo(gpu.scanouts.info()))
        })
    }

    pub(super) fn edid(&mut self, scanout: u32) -> Result<Step, Refusal> {
        self.when_known(move |gpu| {
            gpu.events.displays_read();
            gpu.scanouts.edid(scanout).map(Response::Edid).ok_or(Refusal::UnknownScanout { id: scanout })
        })
    }

    /// Answers a question about displays: at once, but while somebody finds out what they are.
    fn when_known(
        &mut self,
        answer: impl FnOnce(&mut Self) -> Result<Response, Refusal> + 'static,
    ) -> Result<Step, Refusal> {
        let known = self.scanouts.hold().map_or(Work::Done(()), Work::later);
        Step::after(known, self, |gpu, ()| answer(gpu))
    }

    pub(super) fn capset_info(&self, index: u32) -> Result<Response, Refusal> {
        let index = index as usize;
        if index == self.capsets.len() {
            let max_size = size_of::<crate::protocol::cross_domain::Capabilities>() as u32;
            return Ok(Response::CapsetInfo { id: CAPSET_CROSS_DOMAIN, max_version: CROSS_DOMAIN_VERSION, max_size });
        }
        let capset = self.capsets.get(index).ok_or(Refusal::Parameter("capset index out of range"))?;
        let max_size = capset.data.len() as u32;
        Ok(Response::CapsetInfo { id: capset.id, max_version: capset.max_version, max_size })
    }

    pub(super) fn capset(&self, id: u32, version: u32) -> Result<Response, Refusal> {
        if id == CAPSET_CROSS_DOMAIN && version <= CROSS_DOMAIN_VERSION {
            return Ok(Response::Capset(cross_domain::capabilities(&self.hosts).as_bytes().to_vec()));
        }
        let matches = |capset: &&crate::renderer::Capset| capset.id == id && version <= capset.max_version;
        let capset = self.capsets.iter().find(matches).ok_or(Refusal::UnknownCapset { id })?;
        Ok(Response::Capset(capset.data.clone()))
    }
}
