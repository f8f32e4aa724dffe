//! How the guest learns what the machine has: the ACPI tables. Distributions' kernels take virtio-mmio devices from here and
//! from nowhere else.

use acpi_tables::aml::{Device, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::console;
use super::error::VmmError;
use super::memory::{GPU_REGISTERS, Ram};

/// Interrupt of the virtio-gpu, an input of the I/O APIC.
pub(crate) const GPU_GSI: u32 = 16;
/// Interrupt of the console.
pub(crate) const CONSOLE_GSI: u32 = 4;

/// The root pointer; the guest finds it by its address in the boot parameters, or by looking through this part of memory.
pub(crate) const RSDP: u64 = 0xe_0000;
/// The other tables follow here.
const TABLES: u64 = RSDP + 0x40;

/// Ports of the sleep registers: the guest powers off by writing [`POWER_OFF`] to the first.
pub(crate) const SLEEP_CONTROL: u16 = 0x604;
pub(crate) const SLEEP_STATUS: u16 = 0x605;
/// Port of the reset register, which takes [`RESET_VALUE`].
pub(crate) const RESET: u16 = 0x606;
pub(crate) const RESET_VALUE: u8 = 1;
/// SLP_EN and sleep type 5 (ACPI 6.5, section 4.8.3.7).
pub(crate) const POWER_OFF: u8 = 1 << 5 | SLEEP_TYPE << 2;
const SLEEP_TYPE: u8 = 5;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

const OEM: [u8; 6] = *b"VGPURG";
const TABLE: [u8; 8] = *b"VGPUVMM ";
const REVISION: u32 = 1;

/// Writes all tables into guest memory.
pub(crate) fn write_tables(ram: &Ram, cpus: u8) -> Result<(), VmmError> {
    let mut next = TABLES;
    let mut put = |table: &dyn Aml| -> Result<u64, VmmError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = next;
        ram.write_slice(&bytes, GuestAddress(at)).map_err(VmmError::memory)?;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        Ok(at)
    };
    let dsdt = put(&dsdt())?;
    let mut roots = XSDT::new(OEM, TABLE, REVISION);
    roots.add_entry(put(&fadt(dsdt))?);
    roots.add_entry(put(&madt(cpus))?);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, put(&roots)?).to_aml_bytes(&mut rsdp);
    ram.write_slice(&rsdp, GuestAddress(RSDP)).map_err(VmmError::memory)
}

/// The devices, and what powering off is.
fn dsdt() -> Sdt {
    let mut body = Vec::new();
    let registers = Memory32Fixed::new(true, GPU_REGISTERS as u32, 0x1000);
    let gpu_interrupt = Interrupt::new(true, true, false, false, GPU_GSI);
    let gpu_resources = ResourceTemplate::new(vec![&registers, &gpu_interrupt]);
    let gpu_id = Name::new(Path::new("_HID"), &"LNRO0005");
    let gpu_number = Name::new(Path::new("_UID"), &aml::ZERO);
    let gpu_settings = Name::new(Path::new("_CRS"), &gpu_resources);
    let gpu = Device::new(Path::new("VIO0"), vec![&gpu_id, &gpu_number, &gpu_settings]);

    let ports = IO::new(console::PORT, console::PORT, 1, console::PORTS);
    let console_interrupt = Interrupt::new(true, true, false, false, CONSOLE_GSI);
    let console_resources = ResourceTemplate::new(vec![&ports, &console_interrupt]);
    let console_id = aml::EISAName::new("PNP0501");
    let console_id = Name::new(Path::new("_HID"), &console_id);
    let console_number = Name::new(Path::new("_UID"), &aml::ZERO);
    let console_settings = Name::new(Path::new("_CRS"), &console_resources);
    let console = Device::new(Path::new("COM1"), vec![&console_id, &console_number, &console_settings]);

    Scope::new(Path::new("_SB_"), vec![&gpu, &console]).to_aml_bytes(&mut body);
    let sleep = Package::new(vec![&SLEEP_TYPE]);
    Name::new(Path::new("_S5_"), &sleep).to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// A machine without the PC's fixed hardware: without the first flag Linux finds no ACPI at all.
fn fadt(dsdt: u64) -> FADT {
    let port = |at: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(at));
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // No VGA and no CMOS clock to look for (ACPI 6.5, section 5.2.9.3).
    fadt.iapc_boot_arch = (1 << 2 | 1 << 5).into();
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// The interrupt controllers, which KVM has.
fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}
