use crate::files::Files;
use crate::loader::{Device, FileRef, Menu};

fn device(name: &str, files: &[(&str, &str)]) -> Device {
    let (uuid, label) = (Some("0123-4567".into()), Some(name.replace(',', "-")));
    Device { uuid, label, ..Device::of(name, Files::tree(files)) }
}

fn menu(files: &[(&str, &str)]) -> Menu {
    super::menu(&[device("hd0,gpt2", files)], false).unwrap()
}

/// What GRUB starts by itself.
fn default(menu: &Menu) -> &str {
    &menu.entries[menu.default.unwrap()].title
}

const THREE: &str = "menuentry A --id a { linux /a }\n\
     submenu 'More' --id more {\n menuentry 'B > b' { linux /b x=$1 }\n menuentry C --id c { linux /c }\n }\n\
     menuentry \"D\" --class x --id=d { linux (hd0,gpt2)/d one \"two three\"; initrd /i /j }\n";

#[test]
fn the_default_is_a_number_an_id_a_title_or_a_path() {
    for (value, expected) in [
        ("0", "A"),
        ("2", "D"),
        ("d", "D"),
        ("More>C", "More > C"),
        ("more>c", "More > C"),
        ("1>1", "More > C"),
        ("1", "More > B > b"),
        ("more>B > b", "More > B > b"),
        ("7", "A"),
        ("nothing", "A"),
        ("", "A"),
    ] {
        let text = format!("set default=\"{value}\"\n{THREE}");
        assert_eq!(default(&menu(&[("/boot/grub/grub.cfg", &text)])), expected, "{value}");
    }
    let menu = menu(&[("/boot/grub/grub.cfg", THREE)]);
    assert_eq!(menu.entries.len(), 4);
    let last = &menu.entries[3];
    assert_eq!(last.kernel, Some(FileRef::new(0, "/d")));
    assert_eq!(last.cmdline, "one two three");
    assert_eq!(last.initrds, [FileRef::new(0, "/i"), FileRef::new(0, "/j")]);
}

#[test]
fn the_saved_entry_counts_and_the_next_one_counts_more() {
    let text = format!(
        "if [ -s $prefix/grubenv ]; then load_env; fi\n\
         if [ \"${{next_entry}}\" ] ; then set default=\"${{next_entry}}\"; else set default=\"${{saved_entry}}\"; fi\n{THREE}"
    );
    let with = |environment: &str| {
        let environment = format!("# GRUB Environment Block\n{environment}\n######");
        default(&menu(&[("/boot/grub/grub.cfg", &text), ("/boot/grub/grubenv", &environment)]))
            .to_owned()
    };
    assert_eq!(with("saved_entry=d"), "D");
    assert_eq!(with("saved_entry=d\nnext_entry=more>c"), "More > C");
    assert_eq!(with("x=y"), "A");
}

#[test]
fn a_kernel_is_found_on_the_file_system_that_was_searched() {
    let root = device(
        "hd0,gpt3",
        &[(
            "/boot/grub/grub.cfg",
            "set root='hd9,gpt9'\nsearch --no-floppy --label --set=root hd0-gpt1\n\
         search --set=other --file /boot/grub/grub.cfg\nset cmd=\"a  b\"\n\
         menuentry One { linux /k $cmd \"$cmd\" ${none}x $none; initrd ($other)/i }\n\
         for i in 1 2; do menuentry \"n$i\" --id $i { search --fs-uuid --set=root none || true\n linux /k$i; }; done\n\
         function f { if [ $1 = x -a -n \"$2\" ]; then return; fi; set f=wrong; }\nf x y\n\
         if [ \"$f\" ! = 1 ]; then true; elif test -z \"$f\"; then menuentry F { linux /f } ; fi\n",
        )],
    );
    let boot = device("hd0,gpt1", &[("/k", "kernel")]);
    let menu = super::menu(&[boot, root], false).unwrap();
    assert_eq!(menu.entries[0].kernel, Some(FileRef::new(0, "/k")));
    assert_eq!(menu.entries[0].cmdline, "a b a  b x");
    assert_eq!(menu.entries[0].initrds, [FileRef::new(1, "/i")]);
    assert_eq!(menu.entries.len(), 4, "{menu:?}");
}

#[test]
fn an_esps_stub_leads_to_the_real_configuration() {
    let stub = "search --no-floppy --root-dev-only --fs-uuid --set=dev 89ab\n\
                set prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n";
    let mut esp = device("hd0,gpt1", &[("/EFI/fedora/grub.cfg", stub)]);
    esp.is_esp = true;
    let mut boot = device(
        "hd0,gpt2",
        &[
            ("/grub2/other.cfg", "x"),
            (
                "/loader/entries/m-6.9.conf",
                "title Nine\nlinux /vmlinuz-9\noptions root=UUID=1 $kernelopts\n",
            ),
            (
                "/loader/entries/m-6.10.conf",
                "title Ten\nlinux /vmlinuz-10\noptions root=UUID=1 $kernelopts\n",
            ),
        ],
    );
    boot.uuid = Some("89ab".into());
    let text = "search --fs-uuid --set=root 89ab\nset kernelopts=quiet\ninsmod blscfg\nblscfg\n";
    let found = super::run(&[esp, boot.clone()], 0, "/EFI/fedora/grub.cfg", true, false);
    assert_eq!(found.entries, []);
    boot.tree = Files::tree(&[
        ("/grub2/grub.cfg", text),
        (
            "/loader/entries/m-6.9.conf",
            "title Nine\nlinux /vmlinuz-9\noptions root=UUID=1 $kernelopts\n",
        ),
        (
            "/loader/entries/m-6.10.conf",
            "title Ten\nlinux /vmlinuz-10\noptions root=UUID=1 $kernelopts\n",
        ),
    ]);
    let menu = super::menu(&[boot], true).unwrap();
    assert_eq!(default(&menu), "Ten");
    assert_eq!(menu.entries[1].cmdline, "root=UUID=1 quiet");
}

#[test]
fn a_configfile_has_entries_and_a_default_of_its_own() {
    let other = "set default=1\nmenuentry A { linux /a }\nmenuentry B { linux /b }\n";
    let files = [("/EFI/x/grub.cfg", "configfile /other.cfg\n"), ("/other.cfg", other)];
    let mut esp = device("hd0,gpt1", &files);
    esp.is_esp = true;
    let found = super::menu(&[esp], true).unwrap();
    assert_eq!(default(&found), "B");
    assert_eq!(found.entries[1].kernel, Some(FileRef::new(0, "/b")));
    // As an entry of a menu, and one that leads to itself.
    let text = "menuentry Other { configfile /other.cfg }\nmenuentry Self { configfile /boot/grub/grub.cfg }\n";
    let found = menu(&[("/boot/grub/grub.cfg", text), ("/other.cfg", other)]);
    assert_eq!(default(&found), "Other > B");
    assert_eq!(found.entries[1].kernel, Some(FileRef::new(0, "/b")));
}

#[test]
fn what_is_asked_of_the_firmware_is_no_entrys_note() {
    // As Ubuntu's 30_uefi-firmware writes it.
    let text = "menuentry A { linux /a }\nif [ \"$grub_platform\" = \"efi\" ]; then\nfwsetup --is-supported\n\
                if [ \"$?\" = 0 ]; then\nmenuentry 'UEFI Firmware Settings' { fwsetup }\nfi\nfi\n";
    let found = super::menu(&[device("hd0,gpt2", &[("/boot/grub/grub.cfg", text)])], true).unwrap();
    let notes: Vec<_> = found.entries.iter().map(|entry| entry.note.as_deref()).collect();
    assert_eq!(notes, [None, Some("it is started by fwsetup")]);
}

#[test]
fn what_takes_long_uses_up_the_steps() {
    let big = "#".repeat(1 << 20);
    let entries = "menuentry A { linux /a }\n".repeat(900);
    let names: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    let value = "a".repeat(60_000);
    for text in [
        "while true; do source /big; done",
        "while true; do load_env -f /small; done",
        "menuentry A { while true; do source /big; done }\nmenuentry B { configfile /boot/grub/grub.cfg }\n\
         menuentry C { configfile /boot/grub/grub.cfg }\nmenuentry D { configfile /boot/grub/grub.cfg }",
        &format!("set a={value}\nwhile true; do test $a = b; done"),
        &format!("set a={value}\nfor b in {}; do set v$b=$a; done\n{entries}", names.join(" ")),
    ] {
        // Without a bound this does not end for hours.
        let found =
            menu(&[("/boot/grub/grub.cfg", text), ("/big", &big), ("/small", &big[..65_000])]);
        assert!(found.entries.len() <= 900, "{}", &text[..40]);
    }
}

#[test]
fn variables_have_a_bound_together() {
    let value = "a".repeat(60_000);
    let sets: String = (0..100).map(|number| format!("set v{number}=\"$a\"\n")).collect();
    let text = format!(
        "set a={value}\n{sets}set a=\nset v0=\nset last=here\nmenuentry \"$last\" {{ linux /$v1 }}\n"
    );
    let found = menu(&[("/boot/grub/grub.cfg", &text)]);
    assert_eq!(found.entries[0].title, "here");
    let devices = [device("hd0,gpt2", &[])];
    let mut machine = super::Machine::new(&devices, 0, "/grub.cfg", false);
    for number in 0..10_000 {
        machine.set(&format!("v{}", number % 7000), "a".repeat(number));
        let held: usize =
            machine.variables.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(held == machine.held && held <= super::MAX_HELD, "{number}");
        if number % 3 == 0 {
            machine.unset(&format!("v{}", number % 100));
        }
    }
}

#[test]
fn scripts_that_do_not_end_are_ended() {
    for text in [
        "while true; do true; done\nmenuentry A { linux /a }",
        "until false; do done",
        "function f { f; f; }\nf\n",
        "source /boot/grub/grub.cfg\nsource /boot/grub/grub.cfg\n",
        "set a=xxxxxxxxxxxxxxxx\nwhile true; do set a=\"$a$a$a$a\"; done",
        "submenu a { submenu b { submenu c { menuentry d { while true; do x=1; done } } } }",
        "for a in 1 2 3 4 5 6 7 8 9; do for b in 1 2 3 4 5 6 7 8 9; do while true; do continue; done; done; done",
    ] {
        let _ = super::menu(&[device("hd0,gpt2", &[("/boot/grub/grub.cfg", text)])], false);
    }
}

/// Titles, and of the default entry: kernel, initial RAM disks and command line.
fn essence(menu: &Menu) -> (Vec<&str>, &str, Vec<&str>, &str) {
    let titles = menu.entries.iter().map(|entry| entry.title.as_str()).collect();
    let entry = &menu.entries[menu.default.unwrap()];
    let initrds = entry.initrds.iter().map(|file| file.path.as_str()).collect();
    (titles, &entry.kernel.as_ref().unwrap().path, initrds, &entry.cmdline)
}

#[test]
fn what_grub_mkconfig_writes_on_debian_is_executed() {
    let menu = menu(&[("/boot/grub/grub.cfg", include_str!("samples/debian.cfg"))]);
    let more =
        "Advanced options for Debian GNU/Linux > Debian GNU/Linux, with Linux 6.1.0-28-amd64";
    let recovery = format!("{more} (recovery mode)");
    let expected = (
        vec!["Debian GNU/Linux", more, recovery.as_str()],
        "/boot/vmlinuz-6.1.0-28-amd64",
        vec!["/boot/initrd.img-6.1.0-28-amd64"],
        "root=UUID=0123-4567 ro quiet",
    );
    assert_eq!(essence(&menu), expected);
}

#[test]
fn what_grub2_mkconfig_writes_on_fedora_lists_bls_entries() {
    let entry = |version: &str, title: &str| {
        format!(
            "title {title}\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img $tuned_initrd\n\
             options $kernelopts $tuned_params\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n"
        )
    };
    let new = entry("6.11.4-301.fc41.x86_64", "Fedora Linux (6.11.4-301.fc41.x86_64) 41");
    let old = entry("6.9.12-200.fc41.x86_64", "Fedora Linux (6.9.12-200.fc41.x86_64) 41");
    let rescue = entry("0-rescue-5f0d", "Fedora Linux (0-rescue-5f0d) 41");
    let environment =
        "# GRUB Environment Block\nsaved_entry=5f0d-6.9.12-200.fc41.x86_64\nboot_success=1\n####";
    let mut files = vec![
        ("/grub2/grub.cfg", include_str!("samples/fedora.cfg")),
        ("/loader/entries/5f0d-6.11.4-301.fc41.x86_64.conf", &*new),
        ("/loader/entries/5f0d-6.9.12-200.fc41.x86_64.conf", &*old),
        ("/loader/entries/5f0d-0-rescue.conf", &*rescue),
    ];
    let found = menu(&files);
    let words = "root=UUID=89ab-cdef ro rootflags=subvol=root rhgb quiet";
    let titles = vec![
        "Fedora Linux (6.11.4-301.fc41.x86_64) 41",
        "Fedora Linux (6.9.12-200.fc41.x86_64) 41",
        "Fedora Linux (0-rescue-5f0d) 41",
    ];
    let expected = (
        titles.clone(),
        "/vmlinuz-6.11.4-301.fc41.x86_64",
        vec!["/initramfs-6.11.4-301.fc41.x86_64.img"],
        words,
    );
    assert_eq!(essence(&found), expected);
    // The entry that was saved.
    files.push(("/grub2/grubenv", environment));
    let found = menu(&files);
    let kernel = "/vmlinuz-6.9.12-200.fc41.x86_64";
    let expected = (titles, kernel, vec!["/initramfs-6.9.12-200.fc41.x86_64.img"], words);
    assert_eq!(essence(&found), expected);
}

#[test]
fn what_grub2_mkconfig_writes_on_opensuse_is_executed() {
    let environment = "# GRUB Environment Block\nsaved_entry=openSUSE Leap 15.6\n####";
    let menu = menu(&[
        ("/boot/grub2/grub.cfg", include_str!("samples/suse.cfg")),
        ("/boot/grub2/grubenv", environment),
    ]);
    let (titles, kernel, initrds, words) = essence(&menu);
    assert_eq!(titles.len(), 3);
    assert_eq!(kernel, "/boot/vmlinuz-6.4.0-150600.23.25-default");
    assert_eq!(initrds, ["/boot/initrd-6.4.0-150600.23.25-default"]);
    assert_eq!(words, "root=UUID=0123-4567 splash=silent mitigations=auto quiet");
}

#[test]
fn opensuses_paths_begin_at_the_default_subvolume() {
    let environment = "# GRUB Environment Block\nsaved_entry=gnulinux-simple-0123-4567\n####";
    let root = |path: &str| format!("/@/.snapshots/1/snapshot{path}");
    let (configuration, saved, kernel) = (
        root("/boot/grub2/grub.cfg"),
        root("/boot/grub2/grubenv"),
        root("/boot/vmlinuz-6.4.0-150600.23.25-default"),
    );
    let boot = device(
        "hd0,gpt2",
        &[
            ("default folder", "/@/.snapshots/1/snapshot"),
            (&configuration, include_str!("samples/suse.cfg")),
            (&saved, environment),
            (&kernel, "kernel"),
        ],
    );
    // What is on the disk that is started from counts before it.
    let first = device("hd0,gpt1", &[("/boot/grub/grub.cfg", THREE)]);
    let found = super::menu(&[first, boot.clone()], false).unwrap();
    assert_eq!(found.configuration.as_ref().unwrap().path, "/boot/grub/grub.cfg");
    let found = super::menu(std::slice::from_ref(&boot), false).unwrap();
    assert_eq!(found.configuration.as_ref().unwrap().path, configuration);
    assert_eq!(essence(&found).1, kernel);
    // The file of the EFI system partition leads there, too.
    let stub = "set btrfs_relative_path=\"yes\"\nsearch --fs-uuid --set=root 0123-4567\n\
                set prefix=(${root})/boot/grub2\nsource \"${prefix}/grub.cfg\"\n";
    let mut esp = device("hd0,gpt1", &[("/EFI/opensuse/grub.cfg", stub)]);
    (esp.is_esp, esp.uuid) = (true, None);
    let devices = [esp, boot];
    let found = super::run(&devices, 0, "/EFI/opensuse/grub.cfg", true, false);
    assert_eq!(essence(&found).1, kernel);
}

#[test]
fn what_grub_mkconfig_writes_on_arch_has_microcode_first() {
    let menu = menu(&[("/grub/grub.cfg", include_str!("samples/arch.cfg"))]);
    let (titles, kernel, initrds, words) = essence(&menu);
    assert_eq!(titles.len(), 3);
    assert_eq!(
        (kernel, initrds),
        ("/vmlinuz-linux", vec!["/intel-ucode.img", "/initramfs-linux.img"])
    );
    assert_eq!(words, "root=UUID=89ab-cdef rw rootflags=subvol=@ loglevel=3 quiet");
}
