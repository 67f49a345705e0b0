#!/bin/sh
# A stream by curl, which does not come back by itself: waits, and presents the last id. Tells each
# event in a line, its name and its data. $1 is a file for the last id, $2 the address.
while true; do
    last_id=$(cat "$1")
    # It stands in a pipe, so what it read is handed on in the file.
    curl --silent --no-buffer --noproxy '*' ${last_id:+--header "Last-Event-ID: $last_id"} "$2" |
        while IFS= read -r line; do
            case $line in
                'id: '*) id=${line#id: } ;;
                'event: '*) name=${line#event: } ;;
                'data: '*) data=${line#data: } ;;
                # Only an empty line makes a block of it: one that was cut counts for nothing.
                '')
                    [ -z "$id" ] || printf '%s' "$id" >"$1"
                    [ -z "$name" ] || printf '%s\t%s\n' "$name" "$data"
                    id='' name='' data=''
                    ;;
            esac
        done
    sleep 3
done
