# The checkpoints of a VM.
$vm = Find-One $words[0]
$current = Word $vm.ParentSnapshotId
Emit @{ snapshots = [object[]]@(Get-VMSnapshot -VM $vm | ForEach-Object {
    $id = Word $_.Id
    @{
        id = $id; name = Word $_.Name; parent = Word $_.ParentSnapshotId; notes = Word $_.Notes
        created = Moment $_.CreationTime; type = Word $_.SnapshotType; current = ($id -eq $current)
    }
}) }
