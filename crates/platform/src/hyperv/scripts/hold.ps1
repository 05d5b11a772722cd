# Holds the disks of a VM still: those of a VM that does not run are, one that runs gets a checkpoint.
$vm = Find-One $words[0]
$name = $words[1]
$state = $vm.State.ToString()
$checkpoint = $null
if ($state -ne 'Off' -and $state -ne 'Saved') {
    $found = @(Get-VMSnapshot -VM $vm | Where-Object { $_.Name -ceq $name })
    if ($found.Count -gt 0) { $checkpoint = $found[0] } else { $checkpoint = Checkpoint-VM -VM $vm -SnapshotName $name -Passthru }
    # As they were then: what is below the checkpoint, which nobody writes to.
    $drives = @(Get-VMHardDiskDrive -VMSnapshot $checkpoint)
} else {
    $drives = @(Get-VMHardDiskDrive -VM $vm)
}
$disks = @($drives | ForEach-Object {
    $chain = @()
    # A disk that is passed through has no file.
    if ($null -eq $_.DiskNumber) { $chain = @(Chain $_.Path) }
    @{
        bus = Word $_.ControllerType; controller = Number $_.ControllerNumber
        unit = Number $_.ControllerLocation; chain = [object[]]$chain
    }
})
Emit @{ checkpoint = $(if ($checkpoint) { Word $checkpoint.Id } else { $null }); disks = [object[]]$disks }
