//! Builds QEMU's arguments: the bare machine, the same for every pod of a shape.
//!
//! Only numbers and the id, which is filtered, come from a user. All paths are fixed names in
//! QEMU's jail, and all devices of a pod come later as JSON. So no value can become another option.

use super::{
    ports::{Port, Ports},
    resize,
};
use crate::{Accelerator, Translations, VmSpec};

/// The path of the kernel inside QEMU's jail.
pub(crate) const KERNEL: &str = "guest/kernel";
/// The path of the initramfs inside QEMU's jail.
pub(crate) const INITRAMFS: &str = "guest/initramfs";

/// The path of the folder with QEMU's firmware inside its jail.
pub(crate) const FIRMWARE: &str = "roms";

/// The guest kernel's command line.
///
/// CPU time of QEMU under TCG from exec to init's first line: 1.58 s with a plain q35 and
/// `console=ttyS0 quiet panic=-1`, 1.25 s with this line and the machine below. Measured and not
/// worth it: `mitigations=off`, `tsc_early_khz`, `nomodeset`, `tsc=reliable`, and qboot in place of
/// SeaBIOS (each within the noise of 0.04 s). `pit=off` and the CPU model `qemu64` save 0.1 s each,
/// but TSC calibration is not reliable without a PIT, and programs need what `qemu64` lacks. A
/// second cpu at boot costs 0.6 s, a higher maximum of cpus nothing, and a maximum of 64 GiB more
/// memory 0.15 s.
///
/// Without `swiotlb=noforce`, a kernel that might get memory above 4 GiB sets 64 MiB aside for
/// devices that can't reach it, and touches all of them. Virtio devices can reach it.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 reboot=t no_timer_check noreplace-smp \
    random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1 i8042.noaux i8042.nokbd i8042.nopnp \
    swiotlb=noforce";

/// Makes a guest under TCG write to each page that it takes into use.
///
/// QEMU does not see what a daemon writes into the guest's memory, such as the pages of a file. If
/// there were instructions in such a page before, QEMU would go on with their translation: programs
/// that are loaded in turns crash. What the guest writes, QEMU does see.
const ZERO_ON_ALLOCATION: &str = " init_on_alloc=1";

/// The model of an emulated cpu: all that QEMU can do. Only the hints that copying byte by byte is
/// fast are left out, since under emulation it is not. Without them, a start takes 3 to 5 % less.
const EMULATED_CPU: &str = "max,erms=off,fsrm=off";

/// The size in MiB of the translated code that an emulated VM's QEMU keeps. It is outside the
/// guest's memory but in the pod's cgroup.
///
/// QEMU's default is up to 1 GiB (accel/tcg/region.c), which no overhead of a RuntimeClass allows
/// for. The boot fills 76. Measured: a start takes 1.9 s, as with the default, and 0.1 s less than
/// with 64. cargo and node at work take 28 to 33 s with any of these sizes.
const TRANSLATED_MIB: u32 = 96;

/// The descriptors that QEMU gets, by their numbers in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptors {
    pub monitor: i32,
    pub console: i32,
    /// The file of [`Translations`], if there is one.
    pub translations: i32,
}

/// What a VM is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A pod.
    Pod,
    /// A template, which is saved when the guest asks for its secret.
    Template,
    /// To show that it boots.
    Probe,
}

/// The arguments for a bare VM.
pub(crate) fn arguments(spec: &VmSpec, descriptors: Descriptors, purpose: Purpose) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| {
        arguments.push(option.to_owned());
        if !value.is_empty() {
            arguments.push(value);
        }
    };
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-S"] {
        add(flag, String::new());
    }
    add("-display", "none".to_owned());
    add("-name", format!("caisson-{}", filtered(&spec.id)));
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    add(
        "-machine",
        "q35,memory-backend=ram,hpet=off,smbus=off,sata=off,usb=off,vmport=off,graphics=off"
            .to_owned(),
    );
    let (accelerator, cpu) = match spec.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        Accelerator::Tcg => (
            format!(
                "tcg,thread=multi,tb-size={TRANSLATED_MIB}{}",
                translations(spec, descriptors.translations)
            ),
            EMULATED_CPU,
        ),
    };
    add("-accel", accelerator);
    add("-cpu", cpu.to_owned());
    add("-smp", cpus(spec));
    add("-m", memory(spec));
    add(
        "-object",
        format!("memory-backend-memfd,id=ram,size={},share=on", spec.memory),
    );
    add("-kernel", format!("/{KERNEL}"));
    add("-initrd", format!("/{INITRAMFS}"));
    let level = spec.guest.log_level.as_str().to_lowercase();
    let mut command_line = format!("{KERNEL_COMMAND_LINE} caisson.log={level}");
    if resize::pluggable_memory(spec) > 0 {
        // Puts most of it into the movable zone, from which it can be taken back.
        command_line
            .push_str(" memhp_default_state=online memory_hotplug.online_policy=auto-movable");
    }
    if spec.accelerator == Accelerator::Tcg {
        command_line.push_str(ZERO_ON_ALLOCATION);
        if spec.max_cpus > 1 {
            command_line.push_str(&delay_loop());
        }
    }
    if spec.guest.modules.is_some() {
        command_line.push_str(" caisson.modules");
    }
    let sysctls = spec.guest.sysctls.iter();
    let sysctls: Vec<_> = sysctls
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if !sysctls.is_empty() {
        command_line.push_str(" caisson.sysctls=");
        command_line.push_str(&sysctls.join(","));
    }
    command_line.push_str(match purpose {
        Purpose::Pod => " quiet",
        Purpose::Template => " quiet caisson.template",
        // What the kernel prints shows that the guest makes progress.
        Purpose::Probe => " caisson.probe",
    });
    add("-append", command_line);
    add(
        "-chardev",
        format!("socket,id=monitor,fd={}", descriptors.monitor),
    );
    add("-mon", "chardev=monitor,mode=control".to_owned());
    add(
        "-chardev",
        format!("socket,id=console,fd={}", descriptors.console),
    );
    add("-serial", "chardev:console".to_owned());
    if purpose != Purpose::Probe {
        arguments.extend(Ports::arguments());
        // By its new id, the kernel of a VM that starts from a template learns that it is another
        // machine, and reseeds its random numbers.
        arguments.extend(["-device".to_owned(), "vmgenid,guid=auto".to_owned()]);
    }
    let is_clone = purpose == Purpose::Pod && spec.template.is_some();
    if (is_clone || purpose == Purpose::Template) && resize::pluggable_memory(spec) > 0 {
        arguments.extend(memory_of_a_template(spec));
    }
    if is_clone {
        arguments.extend(["-incoming".to_owned(), "defer".to_owned()]);
    }
    arguments
}

/// The pluggable memory, in the first port: nearly every machine that starts from a template needs
/// it.
fn memory_of_a_template(spec: &VmSpec) -> [String; 4] {
    let device = Port::first().with(resize::MEMORY, resize::memory_device());
    [
        "-object".to_owned(),
        resize::memory_backend(spec).to_string(),
        "-device".to_owned(),
        device.to_string(),
    ]
}

/// What our patch of QEMU understands, see `packaging/machine/qemu.patch`.
fn translations(spec: &VmSpec, file: i32) -> String {
    match spec.translations() {
        Translations::Own => String::new(),
        Translations::From(_) => format!(",saved-from-fd={file}"),
        Translations::To(_) => format!(",saved-to-fd={file}"),
    }
}

fn cpus(spec: &VmSpec) -> String {
    match spec.max_cpus > spec.cpus {
        true => format!("cpus={},maxcpus={}", spec.cpus, spec.max_cpus),
        false => format!("cpus={}", spec.cpus),
    }
}

fn memory(spec: &VmSpec) -> String {
    let size = spec.memory;
    match resize::pluggable_memory(spec) {
        0 => format!("size={size}B"),
        pluggable => format!("size={size}B,maxmem={}B", size + pluggable),
    }
}

/// Tells the guest how long its delay loops are. Under emulation the guest would measure that for
/// 0.3 s for each further cpu, and then use the first cpu's value all the same. (Under KVM the host
/// provides it.)
fn delay_loop() -> String {
    /// CONFIG_HZ of the guest's kernel.
    const HZ: f64 = 250.0;
    // Under TCG the guest's TSC is the host's. The clock rate changes, but an old reading is good
    // enough for delays.
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = cpus.lines().find_map(|line| {
        let value = line.strip_prefix("cpu MHz")?.split(':').nth(1)?;
        value.trim().parse::<f64>().ok()
    });
    match mhz {
        Some(mhz) => format!(" lpj={:.0}", mhz * 1e6 / HZ),
        None => String::new(),
    }
}

/// Makes an id a value for QEMU's options by replacing all characters but these.
fn filtered(id: &str) -> String {
    id.chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => c,
            _ => '_',
        })
        .take(64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credentials, Guest, Secret, Template};

    fn spec() -> VmSpec {
        VmSpec {
            id: "pod".to_owned(),
            dir: "/run/x,y=z".into(),
            guest: Guest {
                kernel: "/k,foo=bar".into(),
                initramfs: "/i,foo=bar".into(),
                modules: Some("/m,foo=bar".into()),
                log_level: log::LevelFilter::Info,
                sysctls: Default::default(),
            },
            cpus: 1,
            max_cpus: 4,
            memory: 256 << 20,
            max_memory: 1 << 30,
            accelerator: Accelerator::Tcg,
            credentials: Credentials { uid: 1, gid: 1 },
            placement: Default::default(),
            template: None,
            secret: Secret::random().unwrap(),
        }
    }

    fn line(spec: &VmSpec) -> Vec<String> {
        line_for(spec, Purpose::Pod)
    }

    fn line_for(spec: &VmSpec, purpose: Purpose) -> Vec<String> {
        let descriptors = Descriptors {
            monitor: 3,
            console: 4,
            translations: 5,
        };
        arguments(spec, descriptors, purpose)
    }

    fn template(translations: Translations) -> Template {
        Template {
            machine: "/t,foo=bar".into(),
            translations,
        }
    }

    fn value<'a>(line: &'a [String], option: &str) -> &'a str {
        let at = line.iter().position(|argument| argument == option);
        &line[at.unwrap() + 1]
    }

    #[test]
    fn id_with_commas_newlines_and_equals_signs_stays_one_plain_value() {
        let mut hostile = spec();
        hostile.id = "x,debug-threads=on\n-device foo=ü".to_owned();
        let line = line(&hostile);
        assert_eq!(
            value(&line, "-name"),
            "caisson-x_debug-threads_on_-device_foo__"
        );
    }

    #[test]
    fn no_path_of_the_host_is_in_the_arguments() {
        let line = line(&spec()).join("\n");
        for path in ["foo=bar", "/run/x"] {
            assert!(!line.contains(path), "{line}");
        }
    }

    #[test]
    fn size_of_the_vm_is_in_the_arguments() {
        let line = line(&spec());
        assert_eq!(value(&line, "-smp"), "cpus=1,maxcpus=4");
        assert_eq!(value(&line, "-m"), "size=268435456B,maxmem=1073741824B");
        assert!(value(&line, "-object").contains("size=268435456,share=on"));
    }

    #[test]
    fn translations_are_read_or_written_by_a_descriptor() {
        let accelerator = |translations| {
            let mut spec = spec();
            spec.template = Some(template(translations));
            value(&line(&spec), "-accel").to_owned()
        };
        let own = accelerator(Translations::Own);
        assert!(!own.contains("fd"), "{own}");
        let from = accelerator(Translations::From("/f,foo=bar".into()));
        assert_eq!(from, format!("{own},saved-from-fd=5"));
        let to = accelerator(Translations::To("/f,foo=bar".into()));
        assert_eq!(to, format!("{own},saved-to-fd=5"));
    }

    #[test]
    fn kernel_prints_its_boot_for_a_probe_only() {
        let quiet = |purpose| {
            let line = line_for(&spec(), purpose);
            value(&line, "-append")
                .split(' ')
                .any(|word| word == "quiet")
        };
        assert!(quiet(Purpose::Pod) && quiet(Purpose::Template));
        assert!(!quiet(Purpose::Probe));
    }

    #[test]
    fn vm_that_can_t_grow_has_no_room_to() {
        let mut fixed = spec();
        fixed.max_cpus = 1;
        fixed.max_memory = fixed.memory;
        let line = line(&fixed);
        assert_eq!(value(&line, "-smp"), "cpus=1");
        assert_eq!(value(&line, "-m"), "size=268435456B");
    }

    #[test]
    fn machine_of_a_template_has_the_memory_that_can_be_plugged_in() {
        let mut spec = spec();
        let has = |line: Vec<String>| line.join(" ").contains("virtio-mem-pci");
        assert!(!has(line(&spec)));
        spec.template = Some(template(Translations::Own));
        assert!(has(line(&spec)));
        spec.max_memory = spec.memory;
        assert!(!has(line(&spec)));
    }
}
