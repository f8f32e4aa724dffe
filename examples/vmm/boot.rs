//! Puts a Linux kernel, its initrd and all that its 64-bit entry wants to find into guest memory
//! (Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::path::Path;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::acpi;
use super::error::VmmError;
use super::memory::{Layout, Ram};

/// The global descriptor table: null, null, code, data.
pub(crate) const GDT: u64 = 0x500;
pub(crate) const GDT_LIMIT: u16 = size_of::<[u64; 4]>() as u16 - 1;
pub(crate) const CODE_SELECTOR: u16 = 0x10;
pub(crate) const DATA_SELECTOR: u16 = 0x18;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;

const BOOT_PARAMETERS: u64 = 0x7000;
const STACK: u64 = 0x8ff0;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Where conventional memory ends, and the part that the guest searches for tables begins and ends.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;
/// Where kernels prefer to lie; one that does not moves itself.
const KERNEL: u64 = 0x100_0000;
/// The 64-bit entry, counted from where the kernel lies.
const ENTRY_64: u64 = 0x200;
/// XLF_KERNEL_64: there is such an entry.
const HAS_ENTRY_64: u16 = 1;
const LOADER_UNDEFINED: u8 = 0xff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// What the first processor starts with.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) instruction: u64,
    pub(crate) stack: u64,
    pub(crate) page_tables: u64,
    pub(crate) boot_parameters: u64,
}

/// Loads everything, and tells where it starts.
pub(crate) fn load(
    ram: &Ram,
    layout: &Layout,
    kernel: &Path,
    initrd: &Path,
    command_line: &str,
) -> Result<Entry, VmmError> {
    let bad_kernel = |reason: String| VmmError::Kernel { path: kernel.into(), reason };
    let loaded = BzImage::load(&**ram, Some(GuestAddress(KERNEL)), &mut open(kernel)?, Some(GuestAddress(HIGH_START)))
        .map_err(|error| bad_kernel(error.to_string()))?;
    let mut parameters = boot_params { hdr: loaded.setup_header.unwrap_or_default(), ..boot_params::default() };
    if parameters.hdr.xloadflags & HAS_ENTRY_64 == 0 {
        return Err(bad_kernel("it has no 64-bit entry".into()));
    }
    let longest = parameters.hdr.cmdline_size as usize;
    if command_line.len() > longest {
        return Err(bad_kernel(format!("a command line of {} bytes; it takes {longest}", command_line.len())));
    }
    let kernel_end = KERNEL + u64::from(parameters.hdr.init_size);
    let initrd = load_initrd(ram, initrd, kernel_end..layout.low_ram.min(u64::from(parameters.hdr.initrd_addr_max)))?;
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    parameters.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    (parameters.hdr.ramdisk_image, parameters.hdr.ramdisk_size) = initrd;
    parameters.acpi_rsdp_addr = acpi::RSDP;
    write_memory_map(&mut parameters, layout);
    let text = [command_line.as_bytes(), &[0]].concat();
    ram.write_slice(&text, GuestAddress(COMMAND_LINE)).map_err(VmmError::memory)?;
    ram.write_obj(parameters, GuestAddress(BOOT_PARAMETERS)).map_err(VmmError::memory)?;
    write_descriptors(ram)?;
    Ok(Entry {
        instruction: loaded.kernel_load.0 + ENTRY_64,
        stack: STACK,
        page_tables: PAGE_TABLES,
        boot_parameters: BOOT_PARAMETERS,
    })
}

fn open(path: &Path) -> Result<File, VmmError> {
    File::open(path).map_err(|source| VmmError::File { path: path.into(), source })
}

/// As high in `room` as it fits. Answers with its address and length.
fn load_initrd(ram: &Ram, path: &Path, room: std::ops::Range<u64>) -> Result<(u32, u32), VmmError> {
    let bytes = std::fs::read(path).map_err(|source| VmmError::File { path: path.into(), source })?;
    let len = bytes.len() as u64;
    let room_len = room.end.saturating_sub(room.start);
    let at = room.end.checked_sub(len).map(|at| at & !0xfff).filter(|&at| at >= room.start);
    let at = at.ok_or(VmmError::NoRoom { what: "an initrd", len, room: room_len })?;
    ram.write_slice(&bytes, GuestAddress(at)).map_err(VmmError::memory)?;
    Ok((at as u32, len as u32))
}

/// What is RAM, and where the tables lie. The window is no part of it.
fn write_memory_map(parameters: &mut boot_params, layout: &Layout) {
    let mut entries = vec![(0, LOW_END, E820_RAM), (acpi::RSDP, HIGH_START - acpi::RSDP, E820_RESERVED)];
    for (start, len) in layout.ram() {
        let start_of_free = start.max(HIGH_START);
        entries.push((start_of_free, start + len - start_of_free, E820_RAM));
    }
    for (entry, &(addr, size, r#type)) in parameters.e820_table.iter_mut().zip(&entries) {
        *entry = boot_e820_entry { addr, size, r#type };
    }
    parameters.e820_entries = entries.len() as u8;
}

/// Flat segments, and page tables that show the first 4 GiB where they are, in pages of 2 MiB.
fn write_descriptors(ram: &Ram) -> Result<(), VmmError> {
    let write = |value: u64, at: u64| ram.write_obj(value, GuestAddress(at)).map_err(VmmError::memory);
    for (index, descriptor) in (0..).zip([0, 0, CODE_64, DATA]) {
        write(descriptor, GDT + index * 8)?;
    }
    let (present_writable, large) = (3, 1 << 7);
    let (pointers, directories) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    write(pointers | present_writable, PAGE_TABLES)?;
    for gib in 0..4 {
        write((directories + gib * 0x1000) | present_writable, pointers + gib * 8)?;
    }
    for page in 0..4 * 512 {
        write(page << 21 | present_writable | large, directories + page * 8)?;
    }
    Ok(())
}
