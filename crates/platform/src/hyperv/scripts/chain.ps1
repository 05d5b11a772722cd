# A disk's image and those that it is based on.
Emit @{ chain = [object[]]@(Chain $words[0]) }
