# A change to a VM.
$vm = Find-One $words[0]
$state = $vm.State.ToString()
function Ask-Guest([string]$method) {
    # What Stop-VM and Restart-VM do, without waiting for the guest, and without a question to whoever is not there.
    $filter = "SystemName='" + $vm.Id.ToString() + "'"
    $service = Get-CimInstance -Namespace 'root\virtualization\v2' -ClassName Msvm_ShutdownComponent -Filter $filter
    if (-not $service) { throw ('OmnivisorState ' + $state) }
    $result = Invoke-CimMethod -InputObject $service -MethodName $method -Arguments @{ Force = $false; Reason = 'omnivisor' }
    if ($result.ReturnValue -ne 0 -and $result.ReturnValue -ne 4096) { throw ('OmnivisorGuest ' + $result.ReturnValue) }
}
switch ($words[1]) {
    'start' { Start-VM -VM $vm }
    'stop' { Ask-Guest 'InitiateShutdown' }
    'turn-off' { Stop-VM -VM $vm -TurnOff -Force }
    'pause' { Suspend-VM -VM $vm }
    'resume' { if ($state -eq 'Paused') { Resume-VM -VM $vm } else { Start-VM -VM $vm } }
    'reboot' { Ask-Guest 'InitiateReboot' }
    'reset' { Restart-VM -VM $vm -Force }
    'snapshot' { Checkpoint-VM -VM $vm -SnapshotName $words[2] }
    'revert' { Restore-VMSnapshot -VMSnapshot (Find-Snapshot $vm $words[2]) -Confirm:$false }
    'delete' { Remove-VMSnapshot -VMSnapshot (Find-Snapshot $vm $words[2]) -Confirm:$false }
    default { throw 'OmnivisorUnknown' }
}
