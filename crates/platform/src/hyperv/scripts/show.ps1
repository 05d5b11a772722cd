# One VM, with all that it is made of.
$vm = Find-One $words[0]
$generation = [int]$vm.Generation
$processor = Get-VMProcessor -VM $vm
$memory = Get-VMMemory -VM $vm
$firmware = $null
if ($generation -ge 2) {
    $found = Get-VMFirmware -VM $vm
    $firmware = @{
        secureBoot = Word $found.SecureBoot; template = Word $found.SecureBootTemplateId
        order = [object[]]@($found.BootOrder | ForEach-Object { Word $_.BootType })
    }
} else {
    $firmware = @{ order = [object[]]@((Get-VMBios -VM $vm).StartupOrder | ForEach-Object { Word $_ }) }
}
$security = $null
try {
    # Windows Server 2016 and later.
    $found = Get-VMSecurity -VM $vm
    $security = @{ tpm = [bool]$found.TpmEnabled; shielded = [bool]$found.Shielded }
} catch { }
$drives = @(Get-VMHardDiskDrive -VM $vm | ForEach-Object {
    $size = $null
    if ($_.Path) { try { $size = Number (Get-VHD -Path $_.Path).Size } catch { } }
    @{
        kind = 'disk'; bus = Word $_.ControllerType; controller = Number $_.ControllerNumber
        unit = Number $_.ControllerLocation; path = Word $_.Path; disk = Number $_.DiskNumber; size = $size
    }
})
$drives += @(Get-VMDvdDrive -VM $vm | ForEach-Object {
    @{
        kind = 'dvd'; bus = Word $_.ControllerType; controller = Number $_.ControllerNumber
        unit = Number $_.ControllerLocation; path = Word $_.Path
    }
})
if ($generation -lt 2) {
    $drives += @(Get-VMFloppyDiskDrive -VM $vm | ForEach-Object { @{ kind = 'floppy'; path = Word $_.Path } })
}
$controllers = @(Get-VMScsiController -VM $vm | ForEach-Object { Number $_.ControllerNumber })
$nics = @(Get-VMNetworkAdapter -VM $vm | ForEach-Object {
    @{
        name = Word $_.Name; legacy = [bool]$_.IsLegacy; mac = Word $_.MacAddress
        switch = Word $_.SwitchName; connected = [bool]$_.Connected
    }
})
$ports = @(Get-VMComPort -VM $vm | ForEach-Object { @{ number = Number $_.Number; path = Word $_.Path } })
Emit @{
    summary = Summary $vm; generation = $generation; version = Word $vm.Version; notes = Word $vm.Notes
    cpus = Number $processor.Count; threads = Number $processor.HwThreadCountPerCore
    nested = [bool]$processor.ExposeVirtualizationExtensions
    memory = @{
        size = Number $memory.Startup; dynamic = [bool]$memory.DynamicMemoryEnabled
        minimum = Number $memory.Minimum; maximum = Number $memory.Maximum
    }
    firmware = $firmware; security = $security; scsi = [object[]]$controllers; drives = [object[]]$drives
    nics = [object[]]$nics; ports = [object[]]$ports
}
