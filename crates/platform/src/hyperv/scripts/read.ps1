# Reads ranges of files: each further line asks for one, as a path, an offset and a length. An answer is compressed.
$files = @{}
while ($true) {
    $line = Line
    if (-not $line) { break }
    $wanted = (Text $line).Split([char]0)
    $path = $wanted[0]
    try {
        $file = $files[$path]
        if (-not $file) {
            $share = [IO.FileShare]::ReadWrite -bor [IO.FileShare]::Delete
            $file = New-Object IO.FileStream ($path, [IO.FileMode]::Open, [IO.FileAccess]::Read, $share, 65536)
            $files[$path] = $file
        }
        $null = $file.Seek([long]$wanted[1], [IO.SeekOrigin]::Begin)
        $left = [long]$wanted[2]
        $stamp = (Get-Item -LiteralPath $path).LastWriteTimeUtc.Ticks.ToString()
        Emit @{ length = $file.Length; stamp = $stamp }
        Say '='
        $buffer = New-Object byte[] 1048576
        while ($left -gt 0) {
            $count = $file.Read($buffer, 0, [int][Math]::Min($left, $buffer.Length))
            if ($count -le 0) { break }
            $packed = New-Object IO.MemoryStream
            $deflate = New-Object IO.Compression.DeflateStream ($packed, [IO.Compression.CompressionLevel]::Fastest, $true)
            $deflate.Write($buffer, 0, $count)
            $deflate.Dispose()
            Give $packed.ToArray()
            Say '='
            $left -= $count
        }
        Say '+'
    } catch { Fail $_ }
}
