# Made from the parser of the command line; `make docs` renews it.

function __bloomd_at -d 'Whether the words before the cursor lead to this command'
    set -l path bloomd
    set -l value no
    for word in (commandline -opc)[2..-1]
        if test $value = yes
            set value no
            continue
        end
        switch "$path $word"
            case 'bloomd backup -o' 'bloomd backup --output'
                set value yes
            case 'bloomd restore --config'
                set value yes
            case '* -c' '* --config'
                set value yes
            case '* --env-file'
                set value yes
            case '* --dir'
                set value yes
            case '* --port'
                set value yes
            case '* --bind'
                set value yes
            case '* --allow-host'
                set value yes
            case '* --membridge-port'
                set value yes
            case '* -o' '* --output'
                set value yes
            case '* --to'
                set value yes
            case '* --verify'
                set value yes
            case '* --into'
                set value yes
            case '* --server'
                set value yes
            case '* --name'
                set value yes
            case '* --token-file'
                set value yes
            case '* --max-concurrency'
                set value yes
            case '* --label'
                set value yes
            case '* --root'
                set value yes
            case 'bloomd run' 'bloomd dev' 'bloomd check' 'bloomd doctor' 'bloomd migrate' 'bloomd backup' 'bloomd restore' 'bloomd worker'
                set path "$path $word"
        end
    end
    test "$path" = "$argv"
end

complete -c bloomd -f
complete -c bloomd -n '__bloomd_at bloomd' -a run -d 'run the daemon in the foreground, as an init system wants it'
complete -c bloomd -n '__bloomd_at bloomd' -a dev -d 'run everything on this machine, with a PostgreSQL of its own'
complete -c bloomd -n '__bloomd_at bloomd' -a check -d 'check the configuration, and report all its errors at once'
complete -c bloomd -n '__bloomd_at bloomd' -a doctor -d 'look for whatever is wrong with this node, and say what mends it'
complete -c bloomd -n '__bloomd_at bloomd' -a migrate -d 'bring the database schema up to this version; adopts the database of the Node.js runtime'
complete -c bloomd -n '__bloomd_at bloomd' -a backup -d 'put the database, its objects and the configuration into one file, while bloomd works'
complete -c bloomd -n '__bloomd_at bloomd' -a restore -d 'bring back what bloomd backup, or a plain pg_dump, has put into a file'
complete -c bloomd -n '__bloomd_at bloomd' -a worker -d 'do the tasks of a bloomd on this machine, with the Claude CLI'
complete -c bloomd -n '__bloomd_at bloomd' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd' -l version -d 'show program'\''s version number and exit'
complete -c bloomd -n '__bloomd_at bloomd run' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd run' -s c -l config -r -F -d 'the configuration (/etc/bloomd/bloomd.yaml when there is one)'
complete -c bloomd -n '__bloomd_at bloomd run' -l env-file -r -F -d 'the env_file of a configuration that names none; it need not be there'
complete -c bloomd -n '__bloomd_at bloomd dev' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd dev' -l dir -x -a '(__fish_complete_directories)' -d 'where the data and the control socket are (.bloom)'
complete -c bloomd -n '__bloomd_at bloomd dev' -l port -x -d 'port of the HTTP API (PORT, else 5000)'
complete -c bloomd -n '__bloomd_at bloomd dev' -l bind -x -d 'address to listen on (127.0.0.1)'
complete -c bloomd -n '__bloomd_at bloomd dev' -l allow-unauthenticated -d 'listen beyond loopback without a key: anybody who reaches it may do everything'
complete -c bloomd -n '__bloomd_at bloomd dev' -l allow-host -x -d 'a name by which browsers may ask for it while no key is set; repeatable, * for any'
complete -c bloomd -n '__bloomd_at bloomd dev' -l worker -d 'work on this machine as well, with its Claude CLI: as the worker local, with two places'
complete -c bloomd -n '__bloomd_at bloomd dev' -l membridge-port -x -d 'port of the Membridge control plane that is served (8000, or a free one)'
complete -c bloomd -n '__bloomd_at bloomd dev' -l no-membridge -d 'serve no Membridge control plane: its routes answer 502'
complete -c bloomd -n '__bloomd_at bloomd check' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd check' -s c -l config -r -F -d 'the configuration (/etc/bloomd/bloomd.yaml when there is one)'
complete -c bloomd -n '__bloomd_at bloomd check' -l env-file -r -F -d 'the env_file of a configuration that names none; it need not be there'
complete -c bloomd -n '__bloomd_at bloomd check' -l print -d 'show every effective setting with its source; secrets are masked'
complete -c bloomd -n '__bloomd_at bloomd doctor' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd doctor' -s c -l config -r -F -d 'the configuration (/etc/bloomd/bloomd.yaml when there is one)'
complete -c bloomd -n '__bloomd_at bloomd doctor' -l env-file -r -F -d 'the env_file of a configuration that names none; it need not be there'
complete -c bloomd -n '__bloomd_at bloomd doctor' -s o -l output -x -a 'text json' -d 'how to print it (default: text)'
complete -c bloomd -n '__bloomd_at bloomd doctor' -s v -l verbose -d 'show also what is well or was not looked at'
complete -c bloomd -n '__bloomd_at bloomd doctor' -l objects -d 'compare the object store with the database instead: orphans (exit code 1), missing objects (2)'
complete -c bloomd -n '__bloomd_at bloomd doctor' -l fix -d 'with --objects: have the leader remove the orphans'
complete -c bloomd -n '__bloomd_at bloomd migrate' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd migrate' -s c -l config -r -F -d 'the configuration (/etc/bloomd/bloomd.yaml when there is one)'
complete -c bloomd -n '__bloomd_at bloomd migrate' -l env-file -r -F -d 'the env_file of a configuration that names none; it need not be there'
complete -c bloomd -n '__bloomd_at bloomd migrate' -l status -d 'only tell what would be done'
complete -c bloomd -n '__bloomd_at bloomd migrate' -l to -x -d 'bring the schema to version N, forward or back; 0 is the schema of the Node.js runtime'
complete -c bloomd -n '__bloomd_at bloomd migrate' -l yes -d 'do not ask before something is lost on the way back'
complete -c bloomd -n '__bloomd_at bloomd backup' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd backup' -s c -l config -r -F -d 'the configuration (/etc/bloomd/bloomd.yaml when there is one)'
complete -c bloomd -n '__bloomd_at bloomd backup' -l env-file -r -F -d 'the env_file of a configuration that names none; it need not be there'
complete -c bloomd -n '__bloomd_at bloomd backup' -s o -l output -r -F -d 'the file to make, a tar'
complete -c bloomd -n '__bloomd_at bloomd backup' -l verify -r -F -d 'prove one that is there: restore it into a PostgreSQL that is thrown away, and compare'
complete -c bloomd -n '__bloomd_at bloomd backup' -l dir -x -a '(__fish_complete_directories)' -d 'the database of bloomd dev in this directory'
complete -c bloomd -n '__bloomd_at bloomd backup' -l memory -d 'with the agents'\'' memory, the bucket minio.memory_bucket'
complete -c bloomd -n '__bloomd_at bloomd backup' -l no-objects -d 'without what is in the object store'
complete -c bloomd -n '__bloomd_at bloomd backup' -l force -d 'replace a file that is there'
complete -c bloomd -n '__bloomd_at bloomd restore' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd restore' -l env-file -r -F -d 'the env_file of a configuration that names none; it need not be there'
complete -c bloomd -n '__bloomd_at bloomd restore' -s c -r -F -d 'the configuration of this machine'
complete -c bloomd -n '__bloomd_at bloomd restore' -l into -x -d 'the database to restore (that of the configuration)'
complete -c bloomd -n '__bloomd_at bloomd restore' -l dir -x -a '(__fish_complete_directories)' -d 'the database of bloomd dev in this directory'
complete -c bloomd -n '__bloomd_at bloomd restore' -l dry-run -d 'only tell whether the file is whole, and what would be'
complete -c bloomd -n '__bloomd_at bloomd restore' -l replace -d 'drop what is in the database now, and replace objects that are there'
complete -c bloomd -n '__bloomd_at bloomd restore' -l memory -d 'with the agents'\'' memory, the bucket minio.memory_bucket'
complete -c bloomd -n '__bloomd_at bloomd restore' -l no-objects -d 'without what is in the object store'
complete -c bloomd -n '__bloomd_at bloomd restore' -l config -x -a '(__fish_complete_directories)' -d 'also put the backup'\''s files of the configuration into this directory'
complete -c bloomd -n '__bloomd_at bloomd worker' -s h -l help -d 'show this help message and exit'
complete -c bloomd -n '__bloomd_at bloomd worker' -s c -l config -r -F -d 'the configuration (/etc/bloomd/bloomd.yaml when there is one)'
complete -c bloomd -n '__bloomd_at bloomd worker' -l server -x -d 'the bloomd that it works for'
complete -c bloomd -n '__bloomd_at bloomd worker' -l name -x -d 'its name there (the name of this machine)'
complete -c bloomd -n '__bloomd_at bloomd worker' -l token-file -r -F -d 'a file that holds its token, or an API key; not needed without authentication'
complete -c bloomd -n '__bloomd_at bloomd worker' -l max-concurrency -x -d 'tasks that it runs at once, 1 to 32 (1)'
complete -c bloomd -n '__bloomd_at bloomd worker' -l label -x -d 'what this machine has: a task that asks for a label goes only to workers with it; repeatable'
complete -c bloomd -n '__bloomd_at bloomd worker' -l root -x -a '(__fish_complete_directories)' -d 'where it works (/var/lib/bloomd-worker)'
