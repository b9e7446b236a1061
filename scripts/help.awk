# `make help`: the targets with their texts under the headings of the Makefile, and its variables, in `width` columns.
# awk -v width=80 -f scripts/help.awk Makefile

# Text from column `at` on, broken between words; what stands before it is printed already.
function tell(text, at,    words, n, i, column) {
    n = split(text, words, " ")
    column = at
    for (i = 1; i <= n; i++) {
        if (column > at && column + 1 + length(words[i]) > width) {
            printf "\n%" at "s", ""
            column = at
        }
        printf "%s%s", (column > at ? " " : ""), words[i]
        column += length(words[i]) + (column > at)
    }
    printf "\n"
}

BEGIN {
    if (width < 30) width = 80
    if (width > 100) width = 100
    beside = width >= 60 ? 24 : 4 # a narrow terminal has each text below its name
}

function name(text) {
    if (beside == 4 || length(text) > beside - 4) printf "  %s\n%" beside "s", text, ""
    else printf "  %-" beside - 2 "s", text
}

NR == 1, !/^#/ {
    if (match($0, /^#   [A-Z_]+=[^ ]*/)) {
        variables[++many] = substr($0, 5, RLENGTH - 4)
        texts[many] = substr($0, RLENGTH + 1)
    }
}

/^# ---- / {
    heading = $0
    gsub(/^# -+ | -+$/, "", heading)
    heading = toupper(substr(heading, 1, 1)) substr(heading, 2)
}

/^[a-z%][a-zA-Z0-9%_-]*:.*## / {
    if (heading != "") {
        printf "\n"
        tell(heading, 0)
        heading = ""
    }
    target = $0
    sub(/:.*/, "", target)
    text = $0
    sub(/.*## /, "", text)
    name("make " target)
    tell(text, beside)
}

END {
    printf "\n"
    tell("Variables, with the defaults that the published tables use", 0)
    for (i = 1; i <= many; i++) {
        name(variables[i])
        tell(texts[i], beside)
    }
}
