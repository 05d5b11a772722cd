# Removes the checkpoint that held a VM's disks still; Hyper-V merges what was written meanwhile.
$vm = Find-One $words[0]
$id = $words[1]
Get-VMSnapshot -VM $vm | Where-Object { $_.Id.ToString() -eq $id } | Remove-VMSnapshot -Confirm:$false
